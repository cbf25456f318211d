"""Training of AuroraEdge: the paper's three stages, with checkpoints that resume to the exact step."""
