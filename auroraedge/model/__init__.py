"""AuroraEdge as Hugging Face classes.

The processor is read when it is first asked for: it brings the inspection types along, which the model alone (on a
machine that only measures, say) does not need.
"""

from typing import TYPE_CHECKING, Any

from auroraedge.model.configuration import AuroraEdgeConfig
from auroraedge.model.modeling import AuroraEdgeForConditionalGeneration

if TYPE_CHECKING:
    from auroraedge.model.processing import AuroraEdgeProcessor

__all__ = ["AuroraEdgeConfig", "AuroraEdgeForConditionalGeneration", "AuroraEdgeProcessor"]


def __getattr__(name: str) -> Any:
    if name == "AuroraEdgeProcessor":
        from auroraedge.model.processing import AuroraEdgeProcessor

        return AuroraEdgeProcessor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
