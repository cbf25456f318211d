"""The classical baselines on boards and tiles drawn here, and the comparison on real boards where they are at hand."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from auroraedge.data.pack import PackItem, PackObject, load_pack_set
from auroraedge.errors import InvalidImageError, ReferenceRequiredError
from auroraedge.evaluate.baseline import ClassBaseline, ContrastBaseline, XorBaseline, make_baseline
from auroraedge.evaluate.detection import LabelledBox, f_counts, f_score, iou_matrix, match_class
from auroraedge.evaluate.features import SoftmaxRegression, hog, image_features, lbp_histogram
from auroraedge.evaluate.learned_baselines import _suppress
from auroraedge.evaluate.samples import perturb
from auroraedge.evaluate.schema import Prediction, SampleInfo, SampleKind, TruthBox
from auroraedge.evaluate.scoring import image_boxes
from auroraedge.inspection.recipe import Recipe, load_recipe
from auroraedge.inspection.results import Verdict

COPPER, BARE = 0, 255


def board() -> np.ndarray:
    """uint8 RGB 320 x 320: four horizontal traces 14 px wide, 46 px apart, and a large pad. Copper is black."""
    grey = np.full((320, 320), BARE, np.uint8)
    for y in (30, 90, 150, 210):
        grey[y : y + 14, 10:310] = COPPER
    grey[245:305, 40:200] = COPPER
    return cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB)


# kind, drawn rectangle (x1, y1, x2, y2) and its colour
DEFECTS = {
    "open": ((100, 28, 108, 46), BARE),
    "short": ((150, 42, 157, 92), COPPER),
    "mousebite": ((200, 150, 212, 157), BARE),
    "spur": ((60, 224, 70, 233), COPPER),
    "spurious_copper": ((240, 120, 252, 132), COPPER),
    "pin_hole": ((90, 265, 99, 275), BARE),
}


def with_defects(*kinds: str) -> np.ndarray:
    image = board()
    for kind in kinds:
        (x1, y1, x2, y2), colour = DEFECTS[kind]
        image[y1:y2, x1:x2] = colour
    return image


@pytest.fixture(scope="module")
def pcb() -> Recipe:
    return load_recipe("pcb")


@pytest.mark.parametrize("kind", DEFECTS)
def test_comparison_names_each_kind(kind: str, pcb: Recipe) -> None:
    result = XorBaseline().inspect(with_defects(kind), pcb, reference=board())
    assert [d.label for d in result.defects] == [kind]
    assert result.verdict is Verdict.NG and result.reference_used
    (x1, y1, x2, y2), _ = DEFECTS[kind]
    box = result.defects[0].box
    assert box is not None
    assert box.x1 <= x1 + 2 and box.y1 <= y1 + 4 and box.x2 >= x2 - 2 and box.y2 >= y2 - 4
    grown = (x1 - 10.0, y1 - 10.0, x2 + 10.0, y2 + 10.0)
    assert iou_matrix([(box.x1, box.y1, box.x2, box.y2)], [grown])[0, 0] > 0.5


def test_comparison_finds_all_kinds_together_on_a_shifted_board(pcb: Recipe) -> None:
    shifted = np.roll(with_defects(*DEFECTS), (2, -3), axis=(0, 1))
    result = XorBaseline().inspect(shifted, pcb, reference=board())
    assert sorted(d.label for d in result.defects) == sorted(DEFECTS)


def test_good_boards_pass(pcb: Recipe) -> None:
    for image in (board(), perturb(board())):
        result = XorBaseline().inspect(image, pcb, reference=board())
        assert result.verdict is Verdict.OK and not result.defects and result.ng_probability == 0.0


def test_comparison_needs_a_reference_of_the_same_size(pcb: Recipe) -> None:
    with pytest.raises(ReferenceRequiredError, match="template"):
        XorBaseline().inspect(board(), pcb)
    with pytest.raises(ReferenceRequiredError, match="320x300"):
        XorBaseline().inspect(board(), pcb, reference=board()[:300])


@pytest.mark.parametrize("image", [b"", b"nothing", np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)])
def test_what_is_no_image_is_refused(image: bytes | np.ndarray, pcb: Recipe) -> None:
    with pytest.raises(InvalidImageError):
        XorBaseline().inspect(image, pcb, reference=board())


def test_perturbed_template_differs_at_its_edges_only() -> None:
    template = board()
    moved = perturb(template)
    assert np.array_equal(moved, perturb(template)), "the draw is fixed by the pixels"
    differs = (moved != template)[..., 0]
    assert differs.any() and set(np.unique(moved)) == {COPPER, BARE}
    copper = (template[..., 0] == COPPER).astype(np.uint8)
    edges = cv2.dilate(copper, np.ones((9, 9))) - cv2.erode(copper, np.ones((9, 9)))
    assert not (differs & (edges == 0)).any()


def test_lbp_and_hog_by_hand() -> None:
    flat = np.full((16, 16), 7, np.uint8)
    histogram = lbp_histogram(flat)
    assert histogram.shape == (59,) and histogram.sum() == pytest.approx(1)
    assert histogram[57] == 1, "all neighbours >= centre: code 255, the last uniform one"
    ramp = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))
    per_cell = hog(ramp).reshape(-1, 9)
    assert per_cell.argmax(axis=1).tolist() == [0] * 16, "a horizontal ramp has horizontal gradients"
    assert hog(ramp.T.copy()).reshape(-1, 9).argmax(axis=1).tolist() == [4] * 16


def test_softmax_regression_agrees_with_scikit_learn() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(0)
    labels = [str(k) for k in np.repeat([0, 1, 2], 40)]
    x = rng.normal(size=(120, 5)) + np.repeat(rng.normal(size=(3, 5)), 40, axis=0)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    ours = SoftmaxRegression(l2=0.05, steps=3000).fit(x, labels).probabilities(x)
    # scikit-learn minimises C * sum of losses + |W|^2 / 2: C = 1 / (n * l2)
    theirs = linear.LogisticRegression(C=1 / (120 * 0.05), tol=1e-10, max_iter=5000).fit(x, labels).predict_proba(x)
    assert np.abs(ours - theirs).max() < 1e-3


def tile_item(folder: Path, number: int, defect: bool, rng: np.random.Generator) -> PackItem:
    """A noisy grey 96 x 96 tile; a defective one has a dark pore of 9 px."""
    grey = np.clip(rng.normal(150, 3, (96, 96)), 0, 255).astype(np.uint8)
    objects: tuple[PackObject, ...] = ()
    if defect:
        x, y = (int(v) for v in rng.integers(15, 75, 2))
        cv2.circle(grey, (x, y), 4, 60, -1)
        objects = (PackObject(label="blowhole", bbox=(x - 5, y - 5, x + 6, y + 6)),)
    path = folder / f"{number}.png"
    cv2.imwrite(str(path), grey)
    label = "blowhole" if defect else "ok"
    common = {"set_name": "tiles", "split": "train", "group": str(number), "width": 96, "height": 96}
    return PackItem(file=path.name, path=path, image_label=label, objects=objects, **common)


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> list[PackItem]:
    rng = np.random.default_rng(1)
    folder = tmp_path_factory.mktemp("tiles")
    return [tile_item(folder, number, number % 2 == 0, rng) for number in range(16)]


def test_contrast_baseline_learns_pores(tiles: list[PackItem]) -> None:
    recipe = load_recipe("magnetic_tile")
    baseline = ContrastBaseline(tiles[:10])
    for item in tiles[10:]:
        result = baseline.inspect(item.path, recipe)
        assert result.verdict is (Verdict.NG if item.objects else Verdict.OK)
        assert [d.label for d in result.defects] == [o.label for o in item.objects]
        for defect, truth in zip(result.defects, item.objects, strict=True):
            assert defect.box is not None
            found = (defect.box.x1, defect.box.y1, defect.box.x2, defect.box.y2)
            assert iou_matrix([found], [truth.bbox])[0, 0] > 0.33


def test_class_baseline_tells_pored_tiles_from_plain_ones(tiles: list[PackItem]) -> None:
    steel = load_recipe("steel_strip")
    baseline = ClassBaseline(tiles[:10])
    results = [baseline.inspect(item.path, steel) for item in tiles[10:]]
    assert [r.predicted_class for r in results] == [item.image_label for item in tiles[10:]]
    assert all(r.class_probability is not None and r.class_probability > 0.5 for r in results)
    assert image_features(tiles[0].load()).shape == image_features(np.zeros((8, 9, 3), np.uint8)).shape


def test_choice_of_baseline(tiles: list[PackItem], pcb: Recipe) -> None:
    def never() -> list[PackItem]:
        raise AssertionError("the comparison is not fitted")

    assert isinstance(make_baseline(pcb, never)[0], XorBaseline)
    assert isinstance(make_baseline(load_recipe("magnetic_tile"), lambda: tiles[:4])[0], ContrastBaseline)
    assert isinstance(make_baseline(load_recipe("steel_strip"), lambda: tiles[:4])[0], ClassBaseline)
    for name, items, why in (("ball_screw", tiles[1:2], "no boxes"), ("steel_strip", [], "no two classes")):
        predictor, sentence = make_baseline(load_recipe(name), lambda items=items: items)
        assert predictor is None and why in sentence


def test_suppression_keeps_the_strongest() -> None:
    one = LabelledBox(label="a", box=(0, 0, 10, 10), confidence=0.5)
    near = LabelledBox(label="b", box=(1, 0, 11, 10), confidence=0.6)
    away = LabelledBox(label="a", box=(50, 0, 60, 10), confidence=0.1)
    assert _suppress([one, near, away], 0.3) == [near, away]


def test_comparison_is_strong_on_real_boards(pack_dir: Path, pcb: Recipe) -> None:
    items = load_pack_set(pack_dir, "deeppcb", "val")[::25]
    baseline = XorBaseline()
    predictions = [
        Prediction(
            sample=SampleInfo(
                key=item.file,
                kind=SampleKind.ANNOTATED,
                file=item.file,
                split=item.split,
                group=item.group,
                truth=item.truth,
                image_label=item.image_label,
                objects=tuple(TruthBox(label=o.label, box=o.bbox) for o in item.objects),
            ),
            result=baseline.inspect(item.path, pcb, reference=item.reference),
        )
        for item in items
    ]
    matches = [match_class(image_boxes(predictions), label, 0.33) for label in pcb.label_names]
    assert f_score(*f_counts(matches, np.ones(len(items)))) > 0.85
