"""The two clients offer the same calls with the same arguments."""

from __future__ import annotations

import inspect

from auroraedge._proto.inspection.v1 import service_pb2
from auroraedge.client import AsyncInspectionClient, InspectionClient, calls, synchronous


def public(cls: type) -> dict[str, list[tuple[str, object, object]]]:
    return {
        name: [(p.name, p.kind, p.default) for p in inspect.signature(method).parameters.values()]
        for name, method in vars(cls).items()
        if callable(method) and (not name.startswith("_") or name == "__init__")
    }


def test_calls_and_arguments_are_the_same() -> None:
    blocking, asynchronous = public(InspectionClient), public(AsyncInspectionClient)
    assert blocking == asynchronous
    assert len(blocking) > 15


def test_every_rpc_has_a_call() -> None:
    text = "".join(inspect.getsource(module) for module in (calls, synchronous))
    for service in service_pb2.DESCRIPTOR.services_by_name.values():
        for method in service.methods:
            if method.name != "RenewSharedMemory":  # the segment's connection renews the lease
                assert f'"{method.name}"' in text or f".{method.name}" in text, method.name
