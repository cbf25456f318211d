"""Runs engine packages: sessions, generation, inspection. No torch."""

from auroraedge.runtime.engine import EngineInfo, EnginePackage
from auroraedge.runtime.frames import FrameItem, InspectionJob
from auroraedge.runtime.inspector import DEFAULT_ENGINE, Inspector

__all__ = ["DEFAULT_ENGINE", "EngineInfo", "EnginePackage", "FrameItem", "InspectionJob", "Inspector"]
