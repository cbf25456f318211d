"""Instruction samples from annotated parts: a 256x256 view, prompts about it, and their answers.

Sources are the sets of the inspection pack (data.pack) and the generator (data.synthetic). Every sample is a pure
function of a random generator, so a step of training can be repeated exactly. No file name ever reaches the model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from auroraedge.data.augment import Scene
from auroraedge.errors import TrainingError
from auroraedge.inspection import views
from auroraedge.inspection.grammar import MAX_COUNT, quantise_box
from auroraedge.inspection.prompts import Prompt, PromptKind, build_prompt
from auroraedge.inspection.recipe import Recipe
from auroraedge.inspection.tokenizer import InspectionTokenizer

PART_NAMES = {"pcb": "board", "magnetic_tile": "ground tile", "ball_screw": "ball screw", "steel_strip": "steel strip"}
# Compressed tokens stand for an 8x8 grid of blocks; answers list defects in that order.
_BLOCKS = 8


@dataclass(frozen=True, kw_only=True)
class Target:
    """One defect on a view: label and box in 0..1 of the view."""

    label: str
    box: tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A view with its prompts and answer ids. `pixels` uint8 [256, 256, 3]; answers end with <eos>.

    labels: all that the recipe knows, whatever the prompts ask for.
    """

    pixels: np.ndarray
    prompts: tuple[Prompt, ...]
    answers: tuple[tuple[int, ...], ...]
    targets: tuple[Target, ...]
    labels: tuple[str, ...]
    image_class: str | None
    defective: bool
    source: str


def reading_order(targets: Sequence[Target]) -> list[Target]:
    """Row by row over the 8x8 blocks of the box centres."""

    def key(target: Target) -> tuple[int, int, float, float]:
        x, y = (target.box[0] + target.box[2]) / 2, (target.box[1] + target.box[3]) / 2
        return min(int(y * _BLOCKS), _BLOCKS - 1), min(int(x * _BLOCKS), _BLOCKS - 1), y, x

    return sorted(targets, key=key)


def caption(recipe: Recipe, targets: Sequence[Target], image_class: str | None) -> str:
    """The answer to a 'describe' prompt, e.g. 'board: 2 short, 1 open'."""
    part = PART_NAMES.get(recipe.id, "part")
    if image_class is not None and not targets:
        return f"{part}: {image_class}"
    counts = Counter(target.label for target in targets)
    found = ", ".join(f"{counts[name]} {name}" for name in recipe.label_names if counts[name])
    return f"{part}: {found or 'no defects'}"


def answer_ids(
    tokenizer: InspectionTokenizer,
    prompt: Prompt,
    targets: Sequence[Target],
    *,
    image_class: str | None,
    describe: str,
    defective: bool,
) -> tuple[int, ...]:
    """Token ids of the right answer, in the form that inspection.grammar defines.

    image_class: the one class of the image where boxes are not known (steel strip), else None.
    """
    tok = tokenizer
    verdict = {True: tok.ng_id, False: tok.ok_id}
    named = [t for t in targets if t.label in prompt.labels]
    match prompt.kind:
        case PromptKind.INSPECT | PromptKind.LOCATE:
            ids = [verdict[bool(named)]]
            for target in reading_order(named):
                ids += tok.label_ids(target.label)
                ids += [int(tok.loc_ids[b]) for b in quantise_box(*target.box)]
        case PromptKind.CLASSIFY:
            ids = [verdict[image_class is not None]]
            if image_class is not None:
                ids += tok.label_ids(image_class)
        case PromptKind.EXISTS:
            ids = [verdict[bool(named) or image_class == prompt.target]]
        case PromptKind.COUNT:
            ids = [verdict[bool(named)], *tok.label_ids(str(min(len(named), MAX_COUNT)))]
        case PromptKind.DESCRIBE:
            ids = [verdict[defective], *tok.encode(describe)]
        case _:
            raise TrainingError(f"there is no reference answer to a '{prompt.kind}' prompt")
    return (*ids, tok.eos_id)


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where scenes of one recipe come from. `draw` returns a Scene for a random generator.

    kinds: weights of the prompt kinds. exclusive_class: scenes carry an image class instead of boxes.
    """

    name: str
    recipe: Recipe
    draw: Callable[[np.random.Generator], Scene]
    kinds: dict[PromptKind, float]


def _choose_prompts(rng: np.random.Generator, source: Source, scene: Scene, extra: float) -> tuple[Prompt, ...]:
    """One prompt by the source's weights and, with probability `extra`, a second of another kind."""
    kinds = list(source.kinds)
    weights = np.array([source.kinds[k] for k in kinds])
    count = min(2 if rng.random() < extra else 1, len(kinds))
    chosen = rng.choice(len(kinds), size=count, replace=False, p=weights / weights.sum())
    labels = list(source.recipe.label_names)
    named = {o.label for o in scene.objects}
    present = sorted(named if scene.image_class is None else named | {scene.image_class})
    prompts = []
    for index in chosen:
        kind = kinds[index]
        # Half of the targeted prompts ask for something that is there.
        target = str(rng.choice(present if present and rng.random() < 0.5 else labels))
        # Any order of the label list must give the same answer; the recipe's own order stays the most frequent.
        order = labels if rng.random() < 0.5 else [labels[i] for i in rng.permutation(len(labels))]
        prompts.append(build_prompt(kind, order, target, reference=scene.reference is not None))
    return tuple(prompts)


def make_sample(
    rng: np.random.Generator,
    source: Source,
    tokenizer: InspectionTokenizer,
    *,
    extra_prompts: float = 0.0,
    kinds: dict[PromptKind, float] | None = None,
) -> Sample:
    """Draws a scene and asks about it. `kinds` replaces the source's prompt weights (a stage's curriculum)."""
    if kinds:
        usable = {k: w for k, w in kinds.items() if k in source.kinds}
        source = replace(source, kinds=usable or source.kinds)
    scene = source.draw(rng)
    height, width = scene.image.shape[:2]
    pixels = scene.image if scene.reference is None else views.composite(scene.image, scene.reference)
    targets = tuple(
        Target(label=o.label, box=(o.x1 / width, o.y1 / height, o.x2 / width, o.y2 / height)) for o in scene.objects
    )
    prompts = _choose_prompts(rng, source, scene, extra_prompts)
    described = caption(source.recipe, targets, scene.image_class)
    # A boxed source names one class where there is exactly one, so that 'classify' has an answer there too.
    classes = {t.label for t in targets}
    image_class = scene.image_class or (next(iter(classes)) if len(classes) == 1 else None)
    defective = bool(targets) or scene.image_class is not None
    answers = tuple(
        answer_ids(
            tokenizer,
            prompt,
            targets,
            image_class=image_class,
            describe=described,
            defective=defective,
        )
        for prompt in prompts
    )
    return Sample(
        pixels=views.resize_view(np.ascontiguousarray(pixels)),
        prompts=prompts,
        answers=answers,
        targets=targets,
        labels=source.recipe.label_names,
        image_class=image_class,
        defective=defective,
        source=source.name,
    )


def corpus(recipes: Sequence[Recipe]) -> list[str]:
    """Texts that the tokenizer is trained on: every prompt form, captions, numbers."""
    lines = [str(n) for n in range(MAX_COUNT + 1)]
    for recipe in recipes:
        labels = recipe.label_names
        for reference in (False, True):
            for kind in PromptKind:
                if kind is not PromptKind.FREE:
                    lines += [build_prompt(kind, labels, label, reference=reference).text for label in labels]
        part = PART_NAMES.get(recipe.id, "part")
        lines += [f"{part}: {n} {label}, {n} {label}" for label in labels for n in range(1, 4)]
        lines += [f"{part}: no defects"] * 4
    return lines
