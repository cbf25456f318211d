"""The kernels as torch ops: namespace `auroraedge_kernels`, each with a meta implementation and a gradient.

Where no kernel can run (a CPU, another dtype, no Triton) the same op computes its reference, so a program is the same
everywhere. Gradients are those of the reference, recomputed from the saved inputs: the forward pass is where the
launches and the memory are. torch.func.vjp makes second derivatives right as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

NAMESPACE = "auroraedge_kernels"
_library = torch.library.Library(NAMESPACE, "DEF")


def define(schema: str, compute: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Defines an op from its schema, what computes it on every device, and its meta implementation."""
    name = schema.split("(", 1)[0]
    _library.define(schema)
    _library.impl(name, compute, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)
    return getattr(getattr(torch.ops, NAMESPACE), name)


def differentiate_by(name: str, reference: Callable[..., Any]) -> None:
    """The gradient of `reference`, which takes the op's arguments, becomes the op's.

    Only floating tensors that need a gradient get one.
    """

    def remember(ctx: Any, inputs: Sequence[Any], output: Any) -> None:
        ctx.places = [i for i, value in enumerate(inputs) if isinstance(value, torch.Tensor)]
        ctx.others = [None if isinstance(value, torch.Tensor) else value for value in inputs]
        ctx.save_for_backward(*(inputs[i] for i in ctx.places))

    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        arguments = list(ctx.others)
        for place, tensor in zip(ctx.places, ctx.saved_tensors, strict=True):
            arguments[place] = tensor
        wanted = [place for place in ctx.places if ctx.needs_input_grad[place]]

        def of_wanted(*tensors: torch.Tensor) -> Any:
            for place, tensor in zip(wanted, tensors, strict=True):
                arguments[place] = tensor
            return reference(*arguments)

        output, pull, *_ = torch.func.vjp(of_wanted, *(arguments[place] for place in wanted))
        if isinstance(output, tuple):
            pairs = zip(output, gradients, strict=True)
            found = pull(tuple(torch.zeros_like(o) if g is None else g.to(o.dtype) for o, g in pairs))
        else:
            found = pull(gradients[0])
        result: list[torch.Tensor | None] = [None] * len(arguments)
        for place, gradient in zip(wanted, found, strict=True):
            result[place] = gradient
        return tuple(result)

    torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=remember, lib=_library)
