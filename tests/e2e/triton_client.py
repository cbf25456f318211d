"""Talks to a server with the unmodified tritonclient; run by test_service_kserve.py in an environment that has it.

python triton_client.py HOST:PORT IMAGE_FILE      prints what it got as JSON
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException


def image_input(content: bytes) -> Any:
    tensor = triton.InferInput("image", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([content], dtype=object))
    return tensor


def plain(result: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for output in result.get_response().outputs:
        values = result.as_numpy(output.name)
        assert list(values.shape) == list(output.shape), output.name
        found[output.name] = [value.decode() if isinstance(value, bytes) else value for value in values.tolist()]
    return found


def main() -> None:
    address, path = sys.argv[1], Path(sys.argv[2])
    client = triton.InferenceServerClient(address)
    report: dict[str, Any] = {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": [client.is_model_ready(name) for name in ("auroraedge", "magnetic_tile", "nothing")],
        "server": client.get_server_metadata(as_json=True),
        "model": client.get_model_metadata("magnetic_tile", as_json=True),
        "index": client.get_model_repository_index(as_json=True),
    }
    content = path.read_bytes()
    encoded = client.infer("magnetic_tile", [image_input(content)], request_id="7", client_timeout=20)
    report["encoded"] = plain(encoded)
    report["id"] = encoded.get_response().id

    pixels = np.full((48, 64, 3), 60, np.uint8)
    pixels[8:18, 10:20] = 255
    raw = triton.InferInput("pixels", list(pixels.shape), "UINT8")
    raw.set_data_from_numpy(pixels)
    wanted = [triton.InferRequestedOutput("verdict"), triton.InferRequestedOutput("boxes")]
    parameters = {"recipe_id": "magnetic_tile", "request_id": "r-9", "part_id": "P", "exposure_us": 12.5}
    report["raw"] = plain(client.infer("auroraedge", [raw], outputs=wanted, parameters=parameters, priority=1))

    reference = triton.InferInput("reference", [1], "BYTES")
    reference.set_data_from_numpy(np.array([content], dtype=object))
    report["reference"] = plain(client.infer("pcb", [image_input(content), reference]))
    report["prompt"] = plain(
        client.infer("magnetic_tile", [image_input(content)], parameters={"prompt": "count crack"})
    )

    errors: list[list[str]] = []
    for model, tensors, more in (
        ("nothing", [image_input(content)], {}),
        ("magnetic_tile", [image_input(b"no image")], {}),
        ("auroraedge", [image_input(content)], {}),
        ("magnetic_tile", [image_input(content)], {"model_version": "99"}),
        ("magnetic_tile", [image_input(content)], {"parameters": {"recipy": "x"}}),
    ):
        try:
            client.infer(model, tensors, **more)
            errors.append(["OK", ""])
        except InferenceServerException as error:
            errors.append([str(error.status()), error.message()])
    report["errors"] = errors
    print(json.dumps(report))


if __name__ == "__main__":
    main()
