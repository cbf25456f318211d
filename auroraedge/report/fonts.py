"""The fonts of the PDF: DejaVu Sans, which is shipped, and for Chinese one that the machine has or that is named."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from auroraedge.errors import InvalidRequestError, MissingDependencyError
from auroraedge.report.words import Words

SHIPPED = Path(__file__).with_name("templates")
# Chinese fonts by file name, the best first; each with its bold companion where it is a file of its own.
_CHINESE: tuple[tuple[str, str], ...] = (
    ("NotoSansCJK-Regular.ttc", "NotoSansCJK-Bold.ttc"),
    ("NotoSansCJKsc-Regular.otf", "NotoSansCJKsc-Bold.otf"),
    ("NotoSansSC-Regular.otf", "NotoSansSC-Bold.otf"),
    ("NotoSansSC-Regular.ttf", "NotoSansSC-Bold.ttf"),
    ("SourceHanSansSC-Regular.otf", "SourceHanSansSC-Bold.otf"),
    ("SourceHanSansCN-Regular.otf", "SourceHanSansCN-Bold.otf"),
    ("msyh.ttc", "msyhbd.ttc"),
    ("simhei.ttf", ""),
    ("wqy-microhei.ttc", ""),
    ("wqy-zenhei.ttc", ""),
    ("DroidSansFallbackFull.ttf", ""),
    ("Arial Unicode.ttf", ""),
)
REMEDY = (
    "Install a Chinese font (Debian: apt install fonts-noto-cjk), name one with --font FILE, or leave the PDF out: "
    "the HTML page uses the fonts of whoever reads it."
)


@dataclass(frozen=True, kw_only=True)
class FontFile:
    """A font and its number in a collection (.ttc), where the collection's order is not by language."""

    path: Path
    number: int = 0


@dataclass(frozen=True, kw_only=True)
class Fonts:
    """`other`: for what the first font lacks; None where the machine has no Chinese font and the report needs none."""

    regular: FontFile
    bold: FontFile
    other: FontFile | None
    other_bold: FontFile | None


def font_folders() -> tuple[Path, ...]:
    """Where this system keeps fonts."""
    home = Path.home()
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA", str(home))
        return Path(os.environ.get("WINDIR", "C:/Windows")) / "Fonts", Path(local) / "Microsoft/Windows/Fonts"
    if sys.platform == "darwin":
        return Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library/Fonts"
    return (
        Path("/usr/share/fonts"),
        Path("/usr/local/share/fonts"),
        home / ".local/share/fonts",
        home / ".fonts",
    )


@lru_cache(maxsize=4)
def _files(folders: tuple[Path, ...]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for folder in folders:
        for here, _, names in os.walk(folder):
            for name in sorted(names):
                found.setdefault(name.lower(), Path(here, name))
    return found


def _number(path: Path) -> int:
    """The simplified Chinese member of a collection, else the first."""
    if path.suffix.lower() != ".ttc":
        return 0
    from fontTools.ttLib import TTCollection

    with TTCollection(str(path), lazy=True) as collection:
        for number, font in enumerate(collection.fonts):
            name = font["name"].getDebugName(1) or ""
            if name.endswith(" SC"):
                return number
    return 0


def _chinese() -> tuple[FontFile | None, FontFile | None]:
    files = _files(font_folders())
    for regular, bold in _CHINESE:
        path = files.get(regular.lower())
        if path is not None:
            heavy = files.get(bold.lower(), path)
            return FontFile(path=path, number=_number(path)), FontFile(path=heavy, number=_number(heavy))
    return None, None


def find_fonts(t: Words, font: Path | None = None) -> Fonts:
    """The fonts for a report in this language. font: for all text, in place of the shipped one.

    Raises MissingDependencyError where fpdf2 is missing, or a Chinese font that a Chinese report needs.
    """
    try:
        import fpdf  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            "A PDF needs the package 'fpdf2', which is not installed.",
            remedy="Install it: pip install 'auroraedge[report]'; or leave the PDF out.",
        ) from error
    chinese, chinese_bold = _chinese()
    shipped = FontFile(path=SHIPPED / "DejaVuSans.ttf")
    shipped_bold = FontFile(path=SHIPPED / "DejaVuSans-Bold.ttf")
    if font is not None:
        if not font.is_file() or font.suffix.lower() not in (".ttf", ".otf", ".ttc"):
            raise InvalidRequestError(
                f"{font} is no font file.", field="font", remedy="Name a .ttf, .otf or .ttc file."
            )
        own = FontFile(path=font, number=_number(font))
        return Fonts(regular=own, bold=own, other=shipped, other_bold=shipped_bold)
    if t.base != "zh":
        return Fonts(regular=shipped, bold=shipped_bold, other=chinese, other_bold=chinese_bold)
    if chinese is None or chinese_bold is None:
        raise MissingDependencyError("No font with Chinese characters was found for the PDF.", remedy=REMEDY)
    return Fonts(regular=chinese, bold=chinese_bold, other=shipped, other_bold=shipped_bold)
