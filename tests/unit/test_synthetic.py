"""The generators: what they draw must be what they say, where they say it."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from auroraedge.data import synthetic_ground, synthetic_rolled
from auroraedge.data.pack import load_image, load_pack_set
from auroraedge.data.samples import write_samples
from auroraedge.data.synthetic import (
    BOARD_LABELS,
    GROUND_LABELS,
    ROLLED_LABELS,
    SyntheticPart,
    add_board_defects,
    generate_board,
    generate_ground_surface,
    generate_rolled_surface,
)
from auroraedge.data.synthetic_defects import draw_defects
from auroraedge.errors import DatasetError, InvalidImageError, InvalidRequestError, UnknownLabelError
from auroraedge.inspection.recipe import load_recipe

GENERATORS = {"board": generate_board, "ground": generate_ground_surface, "rolled": generate_rolled_surface}


def components(mask: np.ndarray, connectivity: int = 8) -> tuple[int, np.ndarray]:
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=connectivity)
    return count - 1, labels


def comb(size: int = 320) -> np.ndarray:
    """A board on which every kind has room: parallel traces, a wide pour and free space. bool, True is copper."""
    copper = np.zeros((size, size), bool)
    for x in range(20, size, 44):
        copper[: size // 2, x : x + 16] = True
    copper[size // 2 + 70 : size // 2 + 130] = True
    return copper


@pytest.fixture(scope="module")
def drawn() -> list[tuple[np.ndarray, np.ndarray, str, tuple[int, int, int, int]]]:
    """(copper before, copper after, label, box) for each of many defects, each alone on its board."""
    cases = []
    boards = [comb()] + [generate_board(np.random.default_rng(s), 320, 0).image < 128 for s in range(20, 26)]
    for seed, board in enumerate(boards):
        for extra in range(6):
            after, objects = draw_defects(np.random.default_rng([seed, extra]), board, 8)
            for i, (label, (x1, y1, x2, y2)) in enumerate(objects):
                others = np.zeros_like(board)
                for j, (_, (a1, b1, a2, b2)) in enumerate(objects):
                    others[b1:b2, a1:a2] |= i != j
                alone = np.where(others, board, after)
                cases.append((board, alone, label, (x1, y1, x2, y2)))
    return cases


def of_kind(drawn: list, label: str) -> list:
    found = [case for case in drawn if case[2] == label]
    assert len(found) >= 12
    return found


@pytest.mark.parametrize("name", GENERATORS)
def test_same_seed_same_part_other_seed_other_part(name: str) -> None:
    first, again, other = (GENERATORS[name](np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert first.image.dtype == np.uint8
    assert np.array_equal(first.image, again.image)
    assert first.objects == again.objects
    assert first.image_label == again.image_label
    assert first.image.shape != other.image.shape or not np.array_equal(first.image, other.image)


@pytest.mark.parametrize("name", GENERATORS)
def test_boxes_lie_in_the_image_and_labels_agree(name: str) -> None:
    for seed in range(12):
        part = GENERATORS[name](np.random.default_rng(seed))
        height, width = part.image.shape[:2]
        for label, (x1, y1, x2, y2) in part.objects:
            assert 0 <= x1 < x2 <= width
            assert 0 <= y1 < y2 <= height
            assert label == part.image_label or (part.kind == "board" and part.image_label == "defective")
        if part.image_label == "ok":
            assert not part.objects


def test_difference_of_drawn_defects_is_exactly_inside_the_boxes() -> None:
    for seed in range(10):
        before = generate_board(np.random.default_rng(seed), 416, 0).image < 128
        after, objects = draw_defects(np.random.default_rng(seed), before, 9)
        difference = before != after
        assert objects
        assert difference.any()
        for _, (x1, y1, x2, y2) in objects:
            inside = np.argwhere(difference[y1:y2, x1:x2])
            assert len(inside) >= 18
            top, left = inside.min(0)
            bottom, right = (y2 - y1 - 1, x2 - x1 - 1) - inside.max(0)
            # The margin of the source, plus at most 3 px of a stroke that runs on over what it does not change.
            margins = [(left, x1 == 0), (top, y1 == 0), (right, x2 == 416), (bottom, y2 == 416)]
            assert all(10 <= margin <= 13 or (at_border and margin < 10) for margin, at_border in margins)
            difference[y1:y2, x1:x2] = False
        assert not difference.any()


def test_boxes_of_defects_do_not_overlap() -> None:
    for seed in range(8):
        part = generate_board(np.random.default_rng(seed), 416, 12)
        cover = np.zeros(part.image.shape, int)
        for _, (x1, y1, x2, y2) in part.objects:
            cover[y1:y2, x1:x2] += 1
        assert cover.max() == 1


def test_outside_the_boxes_image_and_template_differ_only_along_edges() -> None:
    seen = 0
    for seed in range(8):
        part = generate_board(np.random.default_rng(seed), 416, 5)
        assert part.reference is not None
        assert set(np.unique(part.image)) <= {0, 255}
        difference = part.image != part.reference
        for _, (x1, y1, x2, y2) in part.objects:
            assert difference[y1:y2, x1:x2].any()
            difference[y1:y2, x1:x2] = False
        copper = (part.reference < 128).astype(np.uint8)
        to_gap, to_copper = (cv2.distanceTransform(m, cv2.DIST_L2, 3) for m in (copper, 1 - copper))
        # At the border of a shifted picture another piece of the board comes into view.
        inner = np.zeros(difference.shape, bool)
        inner[6:-6, 6:-6] = True
        edge = np.where(copper > 0, to_gap, to_copper)[difference & inner]
        assert edge.max(initial=0) < 7
        assert np.median(edge) <= 1.5 if edge.size else True
        seen += int(difference.sum())
    assert seen > 500  # two photographs are never identical


def test_open_cuts_the_trace_through(drawn: list) -> None:
    for before, after, _, (x1, y1, x2, y2) in of_kind(drawn, "open"):
        window = (slice(y1, y2), slice(x1, x2))
        assert not (after & ~before).any()
        assert components(after[window])[0] > components(before[window])[0]


def test_open_on_a_straight_trace_separates_its_ends() -> None:
    board = np.zeros((200, 200), bool)
    board[:, 90:106] = True
    for seed in range(10):
        after, objects = draw_defects(np.random.default_rng(seed), board, 6)
        cuts = [box for label, box in objects if label == "open"]
        assert cuts
        _, labels = components(after)
        ends = labels[1, 90:106].max(), labels[-2, 90:106].max()
        assert ends[0] != ends[1]


def test_short_joins_two_components(drawn: list) -> None:
    for before, after, _, _ in of_kind(drawn, "short"):
        assert not (before & ~after).any()
        _, was = components(before)
        _, now = components(after)
        new = after & ~before
        bridge = np.unique(now[new])
        touched = {int(v) for v in np.unique(was[before & (np.isin(now, bridge))])}
        assert len(touched) >= 2


def test_mousebite_bites_but_does_not_cut(drawn: list) -> None:
    for before, after, _, (x1, y1, x2, y2) in of_kind(drawn, "mousebite"):
        window = (slice(max(y1 - 2, 0), y2 + 2), slice(max(x1 - 2, 0), x2 + 2))
        assert not (after & ~before).any()
        assert components(after)[0] == components(before)[0]
        # No hole: what was bitten off is open to the bare board.
        bitten = before & ~after
        grown = cv2.dilate(bitten.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        assert (grown & ~before)[window].any()
        assert components(~after)[0] == components(~before)[0]


def test_spur_touches_one_net_only(drawn: list) -> None:
    for before, after, _, _ in of_kind(drawn, "spur"):
        new = after & ~before
        assert not (before & ~after).any()
        assert components(after)[0] == components(before)[0]
        _, nets = components(before)
        grown = cv2.dilate(new.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        assert len(np.unique(nets[grown & before])) == 1


def test_spurious_copper_is_isolated(drawn: list) -> None:
    for before, after, _, _ in of_kind(drawn, "spurious_copper"):
        new = after & ~before
        grown = cv2.dilate(new.astype(np.uint8), np.ones((7, 7), np.uint8)) > 0
        assert not (grown & before).any()
        assert components(after)[0] > components(before)[0]


def test_pin_hole_is_enclosed(drawn: list) -> None:
    for before, after, _, _ in of_kind(drawn, "pin_hole"):
        gone = before & ~after
        grown = cv2.dilate(gone.astype(np.uint8), np.ones((7, 7), np.uint8)) > 0
        assert before[grown].all()
        assert components(~after, 4)[0] > components(~before, 4)[0]
        assert components(after)[0] == components(before)[0]


def test_all_kinds_are_drawn_about_evenly() -> None:
    counts = Counter()
    for seed in range(6):
        part = generate_board(np.random.default_rng(seed), 640, 12)
        counts.update(label for label, _ in part.objects)
    counts.update(label for label, _ in draw_defects(np.random.default_rng(0), comb(), 12)[1])
    assert set(counts) == set(BOARD_LABELS) == set(load_recipe("pcb").label_names)
    assert min(counts.values()) * 4 > max(counts.values())


def test_defects_on_a_given_template_keep_its_format() -> None:
    template = np.where(comb(), np.uint8(0), np.uint8(255))
    grey = add_board_defects(np.random.default_rng(1), template, 4)
    colour = add_board_defects(np.random.default_rng(1), np.repeat(template[..., None], 3, 2), 4)
    assert len(grey.objects) == 4
    assert grey.objects == colour.objects
    assert grey.reference is template
    assert colour.image.shape == (320, 320, 3)
    assert np.array_equal(colour.image[..., 0], grey.image)


def test_board_without_room_gets_what_fits() -> None:
    bare = np.full((128, 128), 255, np.uint8)
    part = add_board_defects(np.random.default_rng(0), bare, 3)
    assert {label for label, _ in part.objects} == {"spurious_copper"}
    full = add_board_defects(np.random.default_rng(0), np.zeros((128, 128), np.uint8), 3)
    assert {label for label, _ in full.objects} == {"pin_hole"}
    assert add_board_defects(np.random.default_rng(0), bare, 0).image_label == "ok"


@pytest.mark.parametrize("label", GROUND_LABELS)
def test_ground_boxes_are_exact(label: str) -> None:
    for seed in range(6):
        clean, image, objects, got = synthetic_ground.draw_ground(np.random.default_rng(seed), label)
        difference = clean != image
        assert got == label
        assert objects
        for _, (x1, y1, x2, y2) in objects:
            assert difference[y1:y2, x1:x2].any()
        for _, (x1, y1, x2, y2) in objects:
            difference[y1:y2, x1:x2] = False
        assert not difference.any()


@pytest.mark.parametrize("label", ROLLED_LABELS)
def test_rolled_boxes_are_exact(label: str) -> None:
    covers = label in ("red_iron", "oxide_scale_of_temperature_system")
    for seed in range(6):
        clean, image, objects, got = synthetic_rolled.draw_rolled(np.random.default_rng(seed), label)
        difference = np.abs(clean.astype(int) - image)
        assert got == label
        assert difference.max() > 8
        assert bool(objects) is not covers
        for _, (x1, y1, x2, y2) in objects:
            assert difference[y1:y2, x1:x2].max() >= 5
        for _, (x1, y1, x2, y2) in objects:
            difference[y1:y2, x1:x2] = 0
        assert covers or difference.max() == 0


def test_good_surfaces_have_no_boxes() -> None:
    for generate in (generate_ground_surface, generate_rolled_surface):
        part = generate(np.random.default_rng(3), "ok")
        assert part.image_label == "ok"
        assert part.objects == ()
        assert part.reference is None


def test_surface_labels_are_those_of_the_recipes() -> None:
    assert set(GROUND_LABELS) == set(load_recipe("magnetic_tile").label_names)
    assert set(ROLLED_LABELS) == set(load_recipe("steel_strip").label_names)
    ground = {generate_ground_surface(np.random.default_rng(s), size=(120, 140)).image_label for s in range(80)}
    rolled = {generate_rolled_surface(np.random.default_rng(s), size=128).image_label for s in range(120)}
    assert ground == {"ok", *GROUND_LABELS}
    assert rolled == {"ok", *ROLLED_LABELS}


def test_bad_arguments_name_the_field() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(InvalidRequestError, match="size"):
        generate_board(rng, size=10)
    with pytest.raises(InvalidRequestError, match="n_defects"):
        generate_board(rng, n_defects=-1)
    with pytest.raises(InvalidImageError, match="template"):
        add_board_defects(rng, np.zeros((64, 64), np.float32), 1)
    with pytest.raises(UnknownLabelError, match="scratch"):
        generate_ground_surface(rng, "scratch")
    with pytest.raises(UnknownLabelError, match="scratch"):
        generate_rolled_surface(rng, "scratch")


def test_parts_are_frozen() -> None:
    part = SyntheticPart(np.zeros((2, 2), np.uint8), None, (), "ok", "board")
    with pytest.raises(AttributeError):
        part.kind = "other"  # type: ignore[misc]


def test_samples_read_back_as_a_pack(tmp_path: Path) -> None:
    paths = write_samples(tmp_path / "set", seed=3, n_per_kind=7)
    items = load_pack_set(tmp_path, "set", "test")
    assert [item.path for item in items] == paths
    recipes = Counter(item.extra["recipe"] for item in items)
    assert recipes == {"pcb": 7, "magnetic_tile": 7, "steel_strip": 7}
    for item in items:
        assert item.load().shape == (item.height, item.width, 3)
        assert (item.reference is not None) == (item.extra["recipe"] == "pcb")
        names = {name for name in (*BOARD_LABELS, *GROUND_LABELS, *ROLLED_LABELS, "ok", "defective")}
        assert not any(name in item.file for name in names)
    boards = [item for item in items if item.reference is not None]
    assert {item.image_label for item in boards} == {"ok", "defective"}
    assert {item.image_label for item in items if item.extra["recipe"] == "steel_strip"} == set(ROLLED_LABELS)
    with (tmp_path / "set" / "manifest.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [item.file for item in items]
    assert [row["recipe"] for row in rows] == [item.extra["recipe"] for item in items]
    assert len({row["part_id"] for row in rows}) == len(rows)
    for row in rows:
        assert not row["reference"] or (tmp_path / "set" / row["reference"]).is_file()


def test_sample_pixels_survive_and_repeat(tmp_path: Path) -> None:
    first, again = (write_samples(tmp_path / name, seed=8, n_per_kind=2) for name in ("a", "b"))
    for one, two in zip(first, again, strict=True):
        assert one.read_bytes() == two.read_bytes()
    board = next(item for item in load_pack_set(tmp_path, "a") if item.reference is not None)
    assert set(np.unique(load_image(board.path))) == {0, 255}


def test_samples_never_overwrite(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(DatasetError, match="out_dir"):
        write_samples(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(InvalidRequestError, match="n_per_kind"):
        write_samples(tmp_path / "new", n_per_kind=0)


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from auroraedge.data import samples

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(samples, "_write_png", full)
    with pytest.raises(DatasetError, match="No space left"):
        write_samples(tmp_path / "new", n_per_kind=1)
    assert list(tmp_path.iterdir()) == []


def test_the_generators_need_no_torch() -> None:
    code = "import sys, auroraedge.data.samples; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
