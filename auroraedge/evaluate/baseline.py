"""The classical baseline that suits a recipe, so that a model's scores never stand alone.

- all six DeepPCB kinds and a template: comparison with the template (`XorBaseline`), nothing is fitted at run time;
- a `classify` recipe: HOG, LBP and grey statistics with a softmax regression (`ClassBaseline`);
- any other recipe: local-contrast regions with a softmax regression (`ContrastBaseline`).
The latter two are fitted on the set's train split each time; they never see the images that are scored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from auroraedge.data.pack import PackItem
from auroraedge.evaluate.learned_baselines import ClassBaseline, ContrastBaseline
from auroraedge.evaluate.predictor import Predictor
from auroraedge.evaluate.xor_baseline import XOR_KINDS, XorBaseline
from auroraedge.inspection.recipe import Recipe

__all__ = ["ClassBaseline", "ContrastBaseline", "XorBaseline", "make_baseline"]


def make_baseline(recipe: Recipe, train_items: Callable[[], Sequence[PackItem]]) -> tuple[Predictor | None, str]:
    """The baseline for `recipe` and one sentence on it; (None, why not) where none can be fitted.

    `train_items` is called only when the baseline has to be fitted; it gives the items of the set's train split, or
    none where the set has no such split.
    """
    if recipe.golden_reference != "none" and set(recipe.label_names) <= XOR_KINDS:
        return XorBaseline(), "Comparison with the registered template (XOR, blobs, topology); no fitting."
    items = train_items()
    if recipe.task == "classify":
        if len({item.image_label for item in items}) < 2:
            return None, "No baseline: the train split has no two classes to fit one on."
        return ClassBaseline(items), f"Softmax regression on HOG, LBP, grey statistics of {len(items)} train images."
    if not any(item.objects for item in items):
        return None, "No baseline: the train split has no boxes to fit one on."
    return ContrastBaseline(items), f"Softmax regression on local-contrast regions of {len(items)} train images."
