"""The kernels as TensorRT ahead-of-time plug-ins, and plain layers of the same meaning where there are none.

Every op is one ONNX node of the domain `auroraedge` together with a model-local function of standard operators:

    with_functions   node and function: ONNX Runtime runs it, and it is what `plain` and `with_plugins` start from
    plain            the functions put in place of the nodes: for compilers without plug-ins (tensorrt_rtx, JetPack 6)
    with_plugins     the nodes alone, marked for TensorRT's parser: for TensorRT >= 10.7 after `register`

Which of them an engine has been given stands in its manifest (KernelChoice). The plug-in code is written to the
documented API of tensorrt.plugin and has not run on hardware.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from auroraedge.errors import EngineDamagedError
from auroraedge.manifest import KernelChoice

DOMAIN = "auroraedge"
OPSET = 20
# Folders with a plugin.py.
FOLDERS = ("compressor", "fusion_attention", "projector", "rms_norm")
_registered: set[tuple[str, int]] = set()
_FACTOR = re.compile(r"cdiv\((\w+), (\d+)\)|(\w+)")


@dataclass(frozen=True, kw_only=True)
class PluginOp:
    """One plug-in. function: its meaning in standard operators, as ONNX text; register: declares it to
    tensorrt.plugin; fitting: constants that a pack must have for given attributes."""

    name: str
    function: str
    register: Callable[[ModuleType, Packs], None]
    entry: str


@dataclass(frozen=True, kw_only=True)
class Pack:
    """One compiled variant as kernels.pack has written it."""

    folder: Path
    content: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.content["name"])

    def ptx(self) -> str:
        """The PTX text. Raises EngineDamagedError when it is not the one of pack.json."""
        text = (self.folder / "kernel.ptx").read_text(encoding="utf-8")
        if hashlib.sha256(text.encode()).hexdigest() != self.content["ptx_sha256"]:
            raise EngineDamagedError(
                f"The kernel pack {self.folder} is damaged.",
                field="kernels",
                remedy=f"Compile it again: `python -m kernels.pack --sm {self.content['sm']}`.",
            )
        return text

    def launch(self, trtp: ModuleType, dims: dict[str, Any]) -> tuple[bytes, bytes, Any, Any]:
        """What an aot_impl returns. dims: value or shape expression of every scalar argument and grid name."""
        scalars = [a["name"] for a in self.content["arguments"] if not a["type"].startswith("*")]
        parameters = trtp.KernelLaunchParams()
        axes = [evaluate(axis, dims, trtp.cdiv) for axis in self.content["grid"]]
        parameters.grid_x, parameters.grid_y, parameters.grid_z = axes
        parameters.block_x = self.content["block"][0]
        parameters.shared_mem = self.content["shared_bytes"]
        extra = trtp.SymIntExprs.from_tuple([trtp.SymInt32(dims[name]) for name in scalars])
        return self.content["entry"].encode(), self.ptx().encode(), parameters, extra


@dataclass(frozen=True, kw_only=True)
class Packs:
    """The packs of one capability in a folder of kernels.pack."""

    sm: int
    packs: tuple[Pack, ...]

    @classmethod
    def load(cls, folder: Path, sm: int) -> Packs:
        """All packs of sm_XX below `folder`; none if it has none."""
        found = [
            Pack(folder=path.parent, content=json.loads(path.read_text(encoding="utf-8")))
            for path in sorted(folder.glob(f"sm_{sm}/*/pack.json"))
        ]
        return cls(sm=sm, packs=tuple(found))

    def fitting(self, entry: str, **constants: Any) -> list[Pack]:
        """Packs of a kernel with these constants; their order is that of TensorRT's tactics, from 1 on."""
        return [
            pack
            for pack in self.packs
            if pack.content["entry"] == entry
            and all(pack.content["constexprs"].get(name) == value for name, value in constants.items())
        ]


def evaluate(expression: str, dims: dict[str, Any], cdiv: Callable[[Any, int], Any]) -> Any:
    """An axis of a pack's grid: a product of numbers, names and cdiv(name, number)."""
    product: Any = None
    for factor in expression.split(" * "):
        match = _FACTOR.fullmatch(factor)
        if match is None:
            raise ValueError(f"{expression!r} is no grid expression")
        name, divisor, plain = match.groups()
        if plain is not None:
            value = int(plain) if plain.isdigit() else dims[plain]
        elif isinstance(dims[name], int):  # tensorrt.plugin.cdiv refuses two numbers
            value = -(-dims[name] // int(divisor))
        else:
            value = cdiv(dims[name], int(divisor))
        product = value if product is None else product * value
    return product


def plugin_ops() -> dict[str, PluginOp]:
    """All ops by name."""
    found: dict[str, PluginOp] = {}
    for folder in FOLDERS:
        for op in importlib.import_module(f"kernels.{folder}.plugin").OPS:
            found[op.name] = op
    return found


# --- graphs ----------------------------------------------------------------------------------------------------------


def with_functions(model: Any) -> Any:
    """The model with the function of every `auroraedge` node that it uses."""
    import onnx

    used = {node.op_type for node in model.graph.node if node.domain == DOMAIN}
    completed = onnx.ModelProto()
    completed.CopyFrom(model)
    del completed.functions[:]
    for name, op in plugin_ops().items():
        if name in used:
            function = onnx.parser.parse_function(op.function)
            # The operators used mean the same in every version from OPSET on.
            function.opset_import[0].version = max(OPSET, _opset(completed))
            completed.functions.append(function)
    return _importing(completed)


def _opset(model: Any) -> int:
    return max((entry.version for entry in model.opset_import if entry.domain == ""), default=OPSET)


def _importing(model: Any) -> Any:
    """The model, with the domain among those that it imports."""
    import onnx

    if DOMAIN not in {entry.domain for entry in model.opset_import}:
        model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    return model


def plain(model: Any) -> Any:
    """The model in standard operators alone."""
    import onnx.inliner

    inlined = onnx.inliner.inline_local_functions(with_functions(model))
    del inlined.functions[:]
    rest = [entry for entry in inlined.opset_import if entry.domain != DOMAIN]
    del inlined.opset_import[:]
    inlined.opset_import.extend(rest)
    return inlined


def with_plugins(model: Any) -> Any:
    """The model for TensorRT's parser, which finds a plug-in by the node's name and these attributes."""
    import onnx

    marked = onnx.ModelProto()
    marked.CopyFrom(model)
    del marked.functions[:]
    for node in marked.graph.node:
        if node.domain == DOMAIN:
            node.attribute.append(onnx.helper.make_attribute("plugin_namespace", DOMAIN))
            node.attribute.append(onnx.helper.make_attribute("aot", 1))
    return _importing(marked)


# --- choosing --------------------------------------------------------------------------------------------------------


def can_plug(compiler: str) -> str:
    """ "" when the compiler takes ahead-of-time Python plug-ins, else why not. Asked for by name, not by version."""
    try:
        plugin = importlib.import_module(f"{compiler}.plugin")
    except (ImportError, OSError):
        return f"{compiler} has no ahead-of-time Python plug-ins here"
    return "" if hasattr(plugin, "aot_impl") else f"{compiler} has plug-ins, but not ahead of time"


def choose(compiler: str, packs: Packs | None, ops: Sequence[str] | None = None) -> tuple[KernelChoice, ...]:
    """Plug-in or plain layers for every op, with the reason and the hashes of what would be embedded."""
    refused = can_plug(compiler)
    found = []
    for name, op in plugin_ops().items():
        if ops is not None and name not in ops:
            continue
        fitting = packs.fitting(op.entry) if packs is not None else []
        reason = refused or ("" if fitting else "no kernel packs were given for this GPU")
        hashes = {} if reason else {pack.name: pack.content["ptx_sha256"] for pack in fitting}
        found.append(KernelChoice(op=name, how="plain" if reason else "plugin", reason=reason, packs=hashes))
    return tuple(found)


def choose_together(compiler: str, packs: Packs | None, ops: Sequence[str]) -> tuple[KernelChoice, ...]:
    """`choose`, where one op in plain layers makes all plain: a graph has nodes for all of them or for none."""
    found = choose(compiler, packs, ops)
    plain_ones = [choice for choice in found if choice.how == "plain"]
    if not plain_ones:
        return found
    return tuple(KernelChoice(op=choice.op, how="plain", reason=plain_ones[0].reason) for choice in found)


def register(packs: Packs, compiler: str = "tensorrt") -> None:
    """Declares every op that has a pack to tensorrt.plugin, before an ONNX file is parsed; the second time of the same
    packs does nothing."""
    if (compiler, packs.sm) in _registered:
        return
    _registered.add((compiler, packs.sm))
    trtp = importlib.import_module(f"{compiler}.plugin")
    for op in plugin_ops().values():
        if packs.fitting(op.entry):
            op.register(trtp, packs)
