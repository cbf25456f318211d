"""Runs engines: sessions, generation, inspection. No torch, unless a model folder is opened."""

from auroraedge.runtime.engine import Engine, EngineInfo, EnginePackage
from auroraedge.runtime.frames import FrameItem, InspectionJob
from auroraedge.runtime.inspector import DEFAULT_ENGINE, Inspector
from auroraedge.runtime.opening import open_engine

__all__ = [
    "DEFAULT_ENGINE",
    "Engine",
    "EngineInfo",
    "EnginePackage",
    "FrameItem",
    "InspectionJob",
    "Inspector",
    "open_engine",
]
