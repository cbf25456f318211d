"""What the modules of the command line share: exit codes, errors with their remedy, the console.

Exit codes: 0 done (also when parts are NG), 1 internal error, 2 wrong input or usage, 3 not found, 4 cannot work as
installed or configured, 5 server not available or overloaded, 6 alarm of a golden-part challenge, 130 interrupted.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated

import typer

from auroraedge.errors import AuroraEdgeError, MissingDependencyError

if TYPE_CHECKING:
    from rich.console import Console

EXIT_CODES = {
    "INVALID_ARGUMENT": 2,
    "NOT_FOUND": 3,
    "FAILED_PRECONDITION": 4,
    "DATA_LOSS": 4,
    "UNAVAILABLE": 5,
    "RESOURCE_EXHAUSTED": 5,
    "DEADLINE_EXCEEDED": 5,
}
INTERRUPTED = 130
# Packages of the optional extras, by the name that an ImportError carries.
EXTRAS = (
    {
        "torch": "train",
        "transformers": "train",
        "tensorboard": "train",
        "onnx": "train",
        "accelerate": "train",
        "peft": "train",
        "webdataset": "train",
        "gguf": "gguf",
        "onnxscript": "export",
    }
    | dict.fromkeys(("paho", "httpx", "watchfiles"), "ingest")
    | {"fpdf": "report", "xlsxwriter": "report"}
)

JsonOption = Annotated[bool, typer.Option("--json", help="JSON to stdout instead of tables.")]


def application(name: str) -> ModuleType:
    """A module of the application code at the root of the checkout (engine_build), which the wheel does not hold.

    Found beside the library or in the working folder. Raises MissingDependencyError where there is no checkout.
    """
    here = Path(__file__).resolve().parents[1]
    top = name.partition(".")[0]
    root = next((root for root in (here, Path.cwd()) if (root / top / "__init__.py").is_file()), None)
    if root is None:
        raise MissingDependencyError(
            f"This step needs the application code '{top}', which the installed package does not hold.",
            remedy="Run it from a checkout: pip install -e '.[train,export]'.",
        )
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    return importlib.import_module(name)


def open_console(*, to_stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=to_stderr)


def fail(error: AuroraEdgeError) -> typer.Exit:
    """Prints the error and its remedy; returns the exit."""
    where = f"{error.field}: " if error.field else ""
    typer.echo(f"error: {where}{error.message}\n  {error.remedy}", err=True)
    return typer.Exit(EXIT_CODES.get(error.grpc_code, 1))


@contextmanager
def exit_codes() -> Iterator[None]:
    try:
        yield
    except AuroraEdgeError as error:
        raise fail(error) from error
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        missing = MissingDependencyError(
            f"This command needs the package '{package}', which is not installed.",
            remedy=f"Install it: pip install 'auroraedge[{EXTRAS[package]}]'",
        )
        raise fail(missing) from error
    except KeyboardInterrupt as error:
        typer.echo("interrupted", err=True)
        raise typer.Exit(INTERRUPTED) from error
