"""Feeds frames from files, folders, cameras and streams to an inspection server, and its results to MQTT and webhooks.

`Ingest` runs what an `IngestConfig` describes; `auroraedge ingest` is its command. See docs/ingest.md.
"""

from __future__ import annotations

from auroraedge.ingest.run import Ingest
from auroraedge.ingest.settings import IngestConfig, load_config

__all__ = ["Ingest", "IngestConfig", "load_config"]
