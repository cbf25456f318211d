"""The .proto files: generated code is current, everything is commented, names follow buf's standard rules."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

from auroraedge._proto.inspection.v1 import inspection_pb2, service_pb2

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


def test_names_follow_the_standard_rules(files: dict[str, descriptor_pb2.FileDescriptorProto]) -> None:
    inspection, service = files["inspection.proto"], files["service.proto"]
    assert {file.package for file in files.values()} == {"auroraedge.inspection.v1"}
    assert not service.message_type and not service.enum_type, "messages are apart from services"
    assert not inspection.service
    for enum in inspection.enum_type:
        prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", enum.name).upper() + "_"
        assert all(value.name.startswith(prefix) for value in enum.value), enum.name
        assert enum.value[0].name == prefix + "UNSPECIFIED" and enum.value[0].number == 0
    for message in inspection.message_type:
        assert re.fullmatch(r"([A-Z][a-z0-9]*)+", message.name)
        assert all(re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", field.name) for field in message.field), message.name
    (only,) = service.service
    assert only.name.endswith("Service")
    for method in only.method:
        assert method.input_type == f".auroraedge.inspection.v1.{method.name}Request"
        assert method.output_type == f".auroraedge.inspection.v1.{method.name}Response"


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
        "InspectStream": (True, True),
        "Generate": (False, True),
        "ListRecipes": (False, False),
        "GetServerInfo": (False, False),
    }
