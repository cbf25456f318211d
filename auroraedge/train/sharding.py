"""How the processes of a run share a module: DDP through accelerate, or FSDP2 (torch's fully_shard)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer
from transformers.models.siglip2.modeling_siglip2 import Siglip2EncoderLayer

_LAYERS = (Qwen2DecoderLayer, Siglip2EncoderLayer)


class Sharding:
    """The module as a process runs it. module: what is called; `accumulating` surrounds each forward and backward.

    With FSDP2 the layers are sharded one by one and the rest (embeddings, connectors) together. It is applied here and
    not by accelerate's `prepare`, because the parameters of a stage keep their names for checkpoints, and stages freeze
    different parts. One process needs neither.
    """

    def __init__(self, module: nn.Module, accelerator: Accelerator, kind: str) -> None:
        launched = accelerator.distributed_type is DistributedType.FSDP
        self.sharded = accelerator.num_processes > 1 and (kind == "fsdp" or launched)
        self._accelerator = accelerator
        self.module: nn.Module
        if not self.sharded:
            self.module = accelerator.prepare_model(module)
            return
        low = torch.bfloat16 if accelerator.mixed_precision == "bf16" else None
        # Inputs are cast where the model needs it: the loss weights stay float32.
        policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32, cast_forward_inputs=False)
        mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
        for layer in module.modules():
            if isinstance(layer, _LAYERS):
                fully_shard(layer, mesh=mesh, mp_policy=policy)
        fully_shard(module, mesh=mesh, mp_policy=policy)
        self.module = module

    @contextmanager
    def accumulating(self, *, last: bool) -> Iterator[None]:
        """DDP averages gradients after the last micro-batch alone. FSDP does after each: whole gradients of all
        micro-batches would take the memory that sharding saves."""
        if self.sharded or last:
            yield
        else:
            with self._accelerator.no_sync(self.module):
                yield
