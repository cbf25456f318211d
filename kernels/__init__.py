"""Triton kernels for the connectors, behind the ops of auroraedge.ops on CUDA devices.

    import kernels
    kernels.register()                     # once; the model itself does not change
    with kernels.using("triton"):          # or AURORAEDGE_KERNELS=reference|triton|auto
        model(...)

Importing this package is cheap and needs neither torch nor Triton.
"""

from __future__ import annotations

from kernels.choice import ENVIRONMENT, Mode, mode, using

__all__ = ["ENVIRONMENT", "Mode", "mode", "register", "unregister", "using"]


def register() -> None:
    """Registers the kernels for CUDA. Needs torch; without Triton or a GPU the reference goes on computing."""
    from kernels.route import register as put

    put()


def unregister() -> None:
    """Takes the kernels back."""
    from kernels.route import unregister as take

    take()
