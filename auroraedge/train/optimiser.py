"""AdamW with float32 master weights, so that the model may compute in bfloat16."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


class MasterAdamW:
    """Keeps a float32 copy of every trained parameter, steps on it and writes it back in the parameter's dtype.

    Without master weights an update smaller than 2^-8 of a weight is lost in bfloat16. One group a part, each with its
    own learning rate; matrices are decayed, vectors are not.
    """

    def __init__(self, groups: dict[str, list[tuple[str, nn.Parameter]]], weight_decay: float) -> None:
        self.parameters: dict[str, nn.Parameter] = {}
        self.masters: dict[str, torch.Tensor] = {}
        self._by_part: dict[str, list[torch.Tensor]] = {}
        options = []
        for part, named in groups.items():
            for decayed in (True, False):
                chosen = [(name, p) for name, p in named if (p.ndim > 1) is decayed]
                for name, parameter in chosen:
                    self.parameters[name] = parameter
                    self.masters[name] = parameter.detach().float().clone()
                    self._by_part.setdefault(part, []).append(self.masters[name])
                if chosen:
                    options.append(
                        {
                            "params": [self.masters[name] for name, _ in chosen],
                            "weight_decay": weight_decay if decayed else 0.0,
                            "part": part,
                        }
                    )
        self.optimizer = torch.optim.AdamW(options, lr=0.0, betas=(0.9, 0.98), fused=True)

    def step(self, rates: dict[str, float], clip_norm: float) -> float:
        """One update; returns the largest gradient norm of a part before clipping.

        Each part is clipped by itself: the encoder's gradients are ten times the others', and would drown them.
        """
        for name, parameter in self.parameters.items():
            self.masters[name].grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None
        norm = torch.stack([nn.utils.clip_grad_norm_(masters, clip_norm) for masters in self._by_part.values()]).max()
        for group in self.optimizer.param_groups:
            group["lr"] = rates[group["part"]]
        if torch.isfinite(norm):
            self.optimizer.step()
            with torch.no_grad():
                for name, parameter in self.parameters.items():
                    parameter.copy_(self.masters[name])
        return float(norm)

    def state_tensors(self) -> dict[str, torch.Tensor]:
        """Masters and moments by name, for safetensors."""
        found = {f"master.{name}": tensor for name, tensor in self.masters.items()}
        for name, master in self.masters.items():
            for key, value in self.optimizer.state.get(master, {}).items():
                found[f"{key}.{name}"] = torch.as_tensor(value, dtype=torch.float32)
        return found

    @torch.no_grad()
    def load_state_tensors(self, tensors: dict[str, torch.Tensor]) -> None:
        for name, master in self.masters.items():
            if f"master.{name}" not in tensors:  # a part that the earlier settings did not train
                continue
            master.copy_(tensors[f"master.{name}"])
            self.parameters[name].copy_(master)
            if f"exp_avg.{name}" in tensors:
                self.optimizer.state[master] = {
                    key: tensors[f"{key}.{name}"].clone() for key in ("step", "exp_avg", "exp_avg_sq")
                }


def named_parts(modules: Iterable[tuple[str, str, nn.Module]]) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """Parameters by part from (part, prefix, module), each shared parameter once."""
    seen: set[int] = set()
    groups: dict[str, list[tuple[str, nn.Parameter]]] = {}
    for part, prefix, module in modules:
        for name, parameter in module.named_parameters():
            if id(parameter) not in seen:
                seen.add(id(parameter))
                groups.setdefault(part, []).append((f"{prefix}.{name}", parameter))
    return groups
