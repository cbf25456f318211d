"""Predictions on disk while an evaluation runs, so that an interrupted one goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic import ValidationError

from auroraedge.errors import DatasetError
from auroraedge.evaluate.schema import Prediction


class Journal:
    """JSON lines: a header with what the predictions depend on, then one finished prediction a line.

    Opening an existing file reads it back. A last line that a crash cut short is dropped. Raises DatasetError when
    the file is of another predictor, recipe or set, or is not such a file.
    """

    def __init__(self, path: Path, identity: dict[str, str]) -> None:
        self.path = path
        self._done: dict[tuple[str, str], Prediction] = {}
        header = {"auroraedge_predictions": 1, **identity}
        if path.exists() and path.stat().st_size:
            self._read(header)
            self._file = path.open("a", encoding="utf-8")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("w", encoding="utf-8")
            self._write(header)

    def _read(self, header: dict[str, Any]) -> None:
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        lines = whole.decode("utf-8", errors="replace").split("\n")
        try:
            found = json.loads(lines[0]) if whole else None
        except json.JSONDecodeError:
            found = None
        if not isinstance(found, dict) or "auroraedge_predictions" not in found:
            raise DatasetError(f"{self.path} is not a file of predictions.", field="out", remedy="Name another file.")
        if found != header:
            changed = ", ".join(
                sorted(key for key in header.keys() | found.keys() if header.get(key) != found.get(key))
            )
            raise DatasetError(
                f"{self.path} holds predictions of another evaluation (different: {changed}).",
                field="out",
                remedy="Name another file, or remove this one.",
            )
        for number, line in enumerate(lines[1:], start=2):
            if not line:
                continue
            try:
                record = json.loads(line)
                prediction = Prediction.model_validate(record["prediction"])
                self._done[prediction.sample.key, record["input_sha256"]] = prediction
            except (ValueError, KeyError, TypeError, ValidationError) as error:
                raise DatasetError(
                    f"{self.path}, line {number}: not a prediction ({type(error).__name__}).",
                    field="out",
                    remedy="Remove the line, or name another file.",
                ) from error
        if len(whole) < len(data):
            with self.path.open("r+b") as file:
                file.truncate(len(whole))

    def get(self, key: str, input_sha256: str) -> Prediction | None:
        """The finished prediction of this sample with these very bytes, or None."""
        return self._done.get((key, input_sha256))

    def add(self, prediction: Prediction, input_sha256: str) -> None:
        """Keeps a finished prediction; it is on disk when this returns."""
        self._done[prediction.sample.key, input_sha256] = prediction
        self._write({"input_sha256": input_sha256, "prediction": prediction.model_dump(mode="json")})

    def _write(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
