"""AuroraEdge as Hugging Face classes."""

from auroraedge.model.configuration import AuroraEdgeConfig
from auroraedge.model.modeling import AuroraEdgeForConditionalGeneration
from auroraedge.model.processing import AuroraEdgeProcessor

__all__ = ["AuroraEdgeConfig", "AuroraEdgeForConditionalGeneration", "AuroraEdgeProcessor"]
