"""A dataset that comes as one zip file, as the operator's page and most labelling tools export it."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from pathlib import Path

from auroraedge.errors import DatasetError


def open_folder(data: Path, place: Path) -> Path:
    """`data` itself, or the folder in `place` where a zip file is unpacked; a single folder inside it is entered.

    An archive that is already unpacked there is not unpacked again. Raises DatasetError for a damaged archive and for
    one with entries that leave its folder.
    """
    if data.is_dir() or data.suffix.lower() != ".zip":
        return data
    try:
        with data.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        target = place / digest[:16]
        if not target.is_dir():
            fresh = place / f".{digest[:16]}.new"
            shutil.rmtree(fresh, ignore_errors=True)
            with zipfile.ZipFile(data) as archive:
                for entry in archive.namelist():
                    if Path(entry).is_absolute() or ".." in Path(entry).parts or "\\" in entry:
                        raise DatasetError(f"The archive entry '{entry}' leaves the folder.", field="data")
                archive.extractall(fresh)
            fresh.replace(target)
    except (OSError, zipfile.BadZipFile) as error:
        raise DatasetError(f"{data} cannot be unpacked: {error}.", field="data", remedy="Export it again.") from error
    inside = [entry for entry in target.iterdir() if not entry.name.startswith((".", "__MACOSX"))]
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else target
