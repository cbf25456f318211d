"""The .proto files: generated code is current, everything is commented, buf's rules hold, no client is broken."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2
from requires import lacks

from auroraedge._proto.inspection.v1 import inspection_pb2, service_pb2
from scripts import check_api

ROOT = Path(__file__).resolve().parents[2]
PROTOS = ROOT / "protos" / "auroraedge" / "inspection" / "v1"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, descriptor_pb2.FileDescriptorProto]:
    protoc = pytest.importorskip("grpc_tools.protoc", reason="grpcio-tools is a development dependency")
    target = tmp_path_factory.mktemp("descriptors") / "set.bin"
    well_known = Path(protoc.__file__).parent / "_proto"
    sources = [f"auroraedge/inspection/v1/{path.name}" for path in sorted(PROTOS.glob("*.proto"))]
    arguments = [f"-I{ROOT / 'protos'}", f"-I{well_known}", "--include_source_info", f"--descriptor_set_out={target}"]
    assert protoc.main(["protoc", *arguments, *sources]) == 0
    bundle = descriptor_pb2.FileDescriptorSet.FromString(target.read_bytes())
    return {Path(file.name).name: file for file in bundle.file}


def test_generated_code_is_current() -> None:
    pytest.importorskip("grpc_tools", reason="grpcio-tools is a development dependency")
    check = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "generate_protos.py"), "--check"], capture_output=True, text=True
    )
    assert check.returncode == 0, check.stdout + check.stderr


def test_every_message_field_value_and_rpc_is_commented(files: dict[str, descriptor_pb2.FileDescriptorProto]) -> None:
    described = 0
    for file in files.values():
        for location in file.source_code_info.location:
            # A path is (kind, index) or (kind, index, kind, index). At the top: messages 4, enums 5, services 6;
            # inside them: fields, enum values and RPCs 2, oneofs 8.
            path = list(location.path)
            if len(path) not in (2, 4) or path[0] not in (4, 5, 6) or (len(path) == 4 and path[2] not in (2, 8)):
                continue
            described += 1
            text = location.leading_comments.strip()
            assert text, f"{file.name}:{location.span[0] + 1} has no comment"
            assert text[-1] in ".:", f"{file.name}:{location.span[0] + 1}: '{text[-30:]}'"
    assert described > 150


def test_messages_are_apart_from_services(files: dict[str, descriptor_pb2.FileDescriptorProto]) -> None:
    service = files.pop("service.proto")
    assert not service.message_type and not service.enum_type and len(service.service) == 3
    assert not any(file.service for file in files.values())


# --- buf -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def protos(tmp_path: Path) -> Path:
    if shutil.which("buf", path=str(Path(sys.executable).parent)) is None:
        lacks("buf is not installed (the package buf-bin of the extra dev)")
    return Path(shutil.copytree(ROOT / "protos", tmp_path / "protos"))


def edited(protos: Path, name: str, old: str, new: str) -> Path:
    path = protos / "auroraedge" / "inspection" / "v1" / name
    text = path.read_text()
    assert text.count(old) == 1, old
    path.write_text(text.replace(old, new))
    return protos


def test_the_api_keeps_the_rules_and_breaks_no_client(protos: Path) -> None:
    assert check_api.check() == 0
    added = edited(protos, "results.proto", "bool count = 6;", "bool count = 6;\n  // New.\n  bool more = 7;")
    assert check_api.check(added) == 0


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("inspection.proto", "uint64 generation = 3;", "uint64 generation = 30;"),
        ("inspection.proto", "uint64 generation = 3;", "uint32 generation = 3;"),
        ("inspection.proto", "uint64 generation = 3;", "uint64 generations = 3;"),
        ("inspection.proto", "repeated uint64 dropped_sequences = 4;", "uint64 dropped_sequences = 4;"),
        ("inspection.proto", "  // Looks only.\n  SEVERITY_MINOR = 3;\n", ""),
        ("service.proto", "rpc Generate(GenerateRequest) returns (stream ", "rpc Generate(GenerateRequest) returns ("),
        ("admin.proto", "double timeout_seconds = 1;", "reserved 1;"),
    ],
)
def test_what_breaks_a_client_is_refused(protos: Path, name: str, old: str, new: str) -> None:
    assert check_api.check(edited(protos, name, old, new)) == 100


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("admin.proto", "  // Frames that wait.\n  uint32 queue_frames", "  uint32 queue_frames"),
        ("admin.proto", "uint32 queue_frames", "uint32 queueFrames"),
        ("service.proto", "service AdminService", "service Admin"),
        ("service.proto", "  // What the server is doing.\n", ""),
        ("inspection.proto", "PRIORITY_LOW = 1", "LOW = 1"),
    ],
)
def test_what_is_against_the_rules_is_refused(protos: Path, name: str, old: str, new: str) -> None:
    assert check_api.buf("lint", edited(protos, name, old, new)) == 100


def test_failure_is_not_the_default_verdict() -> None:
    verdict = inspection_pb2.Verdict
    assert verdict.Name(inspection_pb2.InspectionResult().verdict) == "VERDICT_UNSPECIFIED"
    assert verdict.Value("VERDICT_ERROR") != 0


def test_generated_modules_live_in_the_package() -> None:
    assert inspection_pb2.InspectRequest.__module__ == "auroraedge._proto.inspection.v1.inspection_pb2"
    streams = {
        method.name: (method.client_streaming, method.server_streaming)
        for method in service_pb2.DESCRIPTOR.services_by_name["InspectionService"].methods
    }
    assert streams == {
        "Inspect": (False, False),
        "InspectProgressive": (False, True),
        "InspectMany": (False, False),
        "InspectStream": (True, True),
        "Generate": (False, True),
        "ListRecipes": (False, False),
        "GetServerInfo": (False, False),
        "AcquireSharedMemory": (False, False),
        "RenewSharedMemory": (False, False),
        "ReleaseSharedMemory": (False, False),
    }
