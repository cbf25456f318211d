"""AuroraEdge: a vision service for industrial inspection (model: arXiv 2601.16615).

Importing this package needs neither torch nor a GPU; heavy imports stay in the modules that use them.
"""

__version__ = "0.1.0"
