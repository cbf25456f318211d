"""Which trainer a recipe is for: nano's own (run.py), or that of pretrained models over several processes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from auroraedge.errors import InvalidRequestError, TrainingError
from auroraedge.train.scale_settings import is_distributed, load_scale_recipe


def train_recipe(
    recipe: str,
    *,
    pack: Path | None = None,
    out: Path | None = None,
    model: Path | None = None,
    data: Sequence[str] = (),
    extend: bool = False,
    seed: int | None = None,
    precision: str | None = None,
    threads: int | None = None,
) -> Path:
    """Trains, and returns the folder of the model. out: runs/RECIPE by default. Raises TrainingError, DatasetError."""
    folder = out or Path("runs") / Path(recipe).stem
    overrides = {"seed": seed, "precision": precision, "threads": threads}
    if precision not in (None, "bf16", "fp32"):
        raise TrainingError(f"There is no precision '{precision}'.", field="--precision", remedy="Use bf16 or fp32.")
    if is_distributed(recipe):
        if model is None:
            raise TrainingError(
                f"Recipe {recipe} starts from a pretrained model.",
                field="--model",
                remedy="Make one with `auroraedge assemble`, and pass --model DIR.",
            )
        if extend:
            raise TrainingError(
                f"Recipe {recipe} cannot be extended.", field="--extend", remedy="Choose another --out."
            )
        import torch

        from auroraedge.train.distributed import main_distributed

        try:
            return main_distributed(recipe, model=model, data=data, pack=pack, out=folder, **overrides)
        finally:
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
    if model is not None or data:
        raise TrainingError(
            f"Recipe {recipe} starts from nothing and draws from --pack.",
            field="--model" if model is not None else "--data",
            remedy="Leave it out, or take the recipe 2b.",
        )
    from auroraedge.train.run import main_train

    return main_train(recipe, pack=pack, out=folder, extend=extend, **overrides)


def estimate_recipe(recipe: str, where: str) -> Table:
    """Memory and time of a recipe on `where`, such as '8xh100'. Raises InvalidRequestError, TrainingError."""
    from auroraedge.train.estimate import GPUS, estimate_table

    count, _, gpu = where.partition("x")
    if not count.isdigit() or int(count) < 1 or gpu not in GPUS:
        raise InvalidRequestError(
            f"'{where}' names no GPUs.", field="--estimate", remedy=f"Write 8xh100; known: {', '.join(GPUS)}."
        )
    if not is_distributed(recipe):
        raise InvalidRequestError(f"Recipe {recipe} has no estimate.", field="--estimate", remedy="Take 2b.")
    return estimate_table(load_scale_recipe(recipe), gpus=int(count), gpu=gpu)
