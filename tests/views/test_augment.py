"""The 16 x 10! transformations of a task: each can be undone, named, and computed as a gather of cells."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from arc_ray.seeding import counter_bits
from arc_ray.tasks.task import Grid
from arc_ray.views.augmentation import (
    KINDS,
    NUM_DRAWS,
    SAME_COLORS,
    Augmentation,
    OneSided,
    PairSide,
    cell_order,
    changed_shapes,
    draw_one_sided,
    swaps_sides,
)

grids = hnp.arrays(np.uint8, st.tuples(st.integers(1, 7), st.integers(1, 7)), elements=st.integers(0, 9))
colors = st.permutations(SAME_COLORS).map(tuple)
sides = st.sampled_from(("input", "output"))
one_sided = st.one_of(
    st.builds(OneSided, sides, st.just("geometric"), st.tuples(st.integers(1, 7))),
    st.builds(OneSided, sides, st.just("padding"), st.tuples(st.integers(1, 5), st.integers(0, 5), st.integers(0, 9))),
    st.builds(OneSided, sides, st.just("upscale"), st.tuples(st.integers(1, 4), st.integers(2, 4))),
    st.builds(OneSided, sides, st.just("mirror"), st.tuples(st.integers(0, 3))),
)
augmentations = st.builds(
    Augmentation, st.integers(0, 7), colors | st.just(SAME_COLORS), st.none() | st.none() | one_sided
)


@settings(deadline=None)
@given(augmentations, grids, sides)
def test_inverting_gives_the_grid_back(augmentation: Augmentation, grid: Grid, side: PairSide):
    """Would catch answers that are turned back the wrong way round: right ones would be scored as wrong."""
    turned = augmentation.apply(grid, side)
    assert turned.dtype == np.uint8
    assert np.array_equal(augmentation.invert(turned, side), grid)
    if not augmentation.one_sided:
        assert np.array_equal(augmentation.apply(augmentation.invert(grid)), grid)


@given(one_sided, grids)
def test_one_side_is_changed_and_the_other_is_not(change: OneSided, grid: Grid):
    """Would catch a change of both sides, which leaves the puzzle as it was, and one that is lost in the codes."""
    augmentation = Augmentation(one_sided=change)
    other: PairSide = "output" if change.side == "input" else "input"
    assert np.array_equal(augmentation.apply(grid, other), grid)
    assert np.array_equal(augmentation.apply(grid, change.side), change.apply(grid))
    code = np.array(
        [1 + (change.side == "output"), list(KINDS).index(change.kind), *change.parameters, 0, 0][:5], np.uint8
    )
    assert OneSided.from_code(code) == change
    for side in ("input", "output"):
        shape = changed_shapes(code[None], side, *(np.array([n], np.uint8) for n in grid.shape))
        assert tuple(int(n[0]) for n in shape) == augmentation.apply(grid, side).shape


@given(one_sided)
def test_a_grid_that_no_change_has_made_is_not_turned_back(change: OneSided):
    """Would catch a wrong answer that becomes a right one by cutting off what is wrong about it."""
    made = change.apply(np.array([[1, 2, 3], [4, 5, 6]], np.uint8))
    if change.kind == "geometric":
        return
    for place in np.ndindex(made.shape):
        spoilt = made.copy()
        spoilt[place] = (spoilt[place] + 7) % 10
        try:
            back = change.invert(spoilt)
        except ValueError:
            continue
        assert np.array_equal(change.apply(back), spoilt)
    with pytest.raises(ValueError, match="was not made by"):
        change.invert(
            np.array([[1]], np.uint8) if change.kind != "padding" else np.array([[change.parameters[2]]], np.uint8)
        )


def test_one_sided_changes_do_what_they_are_called():
    """Would catch an axis taken for the other, which no round trip sees."""
    grid = np.array([[1, 2], [3, 4]], np.uint8)
    done = {
        "output-pad1x0c5": (OneSided("output", "padding", (1, 0, 5)), [[5, 5], [1, 2], [3, 4], [5, 5]]),
        "input-scale1x2": (OneSided("input", "upscale", (1, 2)), [[1, 1, 2, 2], [3, 3, 4, 4]]),
        "output-mirror-right": (OneSided("output", "mirror", (0,)), [[1, 2, 2, 1], [3, 4, 4, 3]]),
        "input-mirror-left": (OneSided("input", "mirror", (1,)), [[2, 1, 1, 2], [4, 3, 3, 4]]),
        "output-mirror-down": (OneSided("output", "mirror", (2,)), [[1, 2], [3, 4], [3, 4], [1, 2]]),
        "input-mirror-up": (OneSided("input", "mirror", (3,)), [[3, 4], [1, 2], [1, 2], [3, 4]]),
        "output-transpose": (OneSided("output", "geometric", (4,)), [[1, 3], [2, 4]]),
        "input-turn1": (OneSided("input", "geometric", (1,)), [[2, 4], [1, 3]]),
    }
    for name, (change, expected) in done.items():
        assert change.apply(grid).tolist() == expected
        assert change.name == name
    assert Augmentation(1, one_sided=OneSided("output", "upscale", (2, 2))).name == "output-scale2x2.turn1"


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        *(("geometric", (0,)), ("geometric", (8,)), ("geometric", (1, 0)), ("mirror", (4,)), ("mirror", (-1,))),
        *(("padding", (0, 0, 1)), ("padding", (6, 1, 1)), ("padding", (1, 1)), ("padding", (1, 1, 10))),
        *(("upscale", (1, 1)), ("upscale", (5, 2)), ("upscale", (2,))),
    ],
)
def test_changes_that_do_nothing_or_too_much_are_refused(kind: Any, parameters: tuple[int, ...]):
    """Would catch a second name of one view, which a vote would count twice, and a grid longer than 30 cells."""
    with pytest.raises(ValueError, match="no parameters"):
        OneSided("input", kind, parameters)


@pytest.mark.parametrize(
    ("longest", "weights"), [(30, {"padding": 1, "upscale": 1, "mirror": 1}), (15, {}), (16, {}), (3, {})]
)
def test_no_side_becomes_longer_than_thirty(longest: int, weights: dict):
    """Would catch a grid that no prompt may hold; and at 30 cells only a turn has room."""
    rng = np.random.default_rng(0)
    num = 4000
    height, width = rng.integers(1, longest + 1, (2, num, 2))
    height[:, 0] = longest
    bits = counter_bits(np.arange(num, dtype=np.uint64), 6, NUM_DRAWS)
    codes = draw_one_sided(bits, 1.0, weights or dict.fromkeys(KINDS, 1.0), height, width)
    for number, side in enumerate(("input", "output")):
        shapes = changed_shapes(codes, side, height[:, number], width[:, number])
        assert max(shape.max() for shape in shapes) <= 30
        assert min(shape.min() for shape in shapes) >= 1
    for code in codes:
        OneSided.from_code(code)  # raises for parameters that are none
    if longest == 3:
        changed = codes[codes[:, 0] > 0]
        assert len(changed) == num, "there is room for everything"
        assert stats.chisquare(np.bincount(changed[:, 1], minlength=4)).pvalue > 0.001
        assert stats.chisquare(np.bincount(changed[:, 0])[1:]).pvalue > 0.001


@settings(deadline=None)
@given(augmentations, augmentations)
def test_names_are_unique(a: Augmentation, b: Augmentation):
    assert (a.name == b.name) == (a == b)


def test_names_are_those_that_prediction_files_hold():
    """Would catch a renaming after which the views of old predictions are others."""
    assert Augmentation().name == "same"
    assert Augmentation(5, (0, 3, 1, 2, 4, 5, 6, 7, 8, 9)).name == "transpose.turn1.colors0312456789"
    assert [Augmentation(s).name for s in range(1, 5)] == ["turn1", "turn2", "turn3", "transpose"]


@pytest.mark.parametrize("colors", [(0,) * 10, tuple(range(9)), tuple(range(1, 11)), (0, 0, 2, 3, 4, 5, 6, 7, 8, 9)])
def test_colours_that_are_no_bijection_are_refused(colors: tuple[int, ...]):
    """Would catch two colours that merge, after which no answer can be turned back."""
    with pytest.raises(ValueError, match="bijection"):
        Augmentation(0, colors)
    with pytest.raises(ValueError, match="symmetry"):
        Augmentation(8)


def test_the_eight_symmetries_are_those_of_the_square():
    """Would catch two numbers for one symmetry: voting would then see fewer views than it pays for."""
    grid = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
    turned = [Augmentation(s).apply(grid) for s in range(8)]
    assert len({(t.shape, t.tobytes()) for t in turned}) == 8
    assert turned[1].tolist() == [[3, 6], [2, 5], [1, 4]], "turn1 is a quarter counter-clockwise"
    assert turned[4].tolist() == [[1, 4], [2, 5], [3, 6]]
    assert turned[5].tolist() == [[4, 5, 6], [1, 2, 3]], "transpose comes before the turn"


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 7))
def test_the_cell_order_and_the_swap_agree_with_apply(height: int, width: int, symmetry: int):
    """Would catch looked-up token ids whose grid is turned otherwise than the text of the slow path."""
    grid = (np.arange(height * width, dtype=np.uint8) % 10).reshape(height, width)
    turned = Augmentation(symmetry).apply(grid)
    assert turned.ravel().tolist() == grid.ravel()[cell_order(height, width, symmetry)].tolist()
    assert turned.shape == ((width, height) if swaps_sides(np.array([symmetry]))[0] else (height, width))


def test_colours_are_renamed_after_their_old_name():
    """Would catch the inverse permutation, which a round trip cannot see."""
    assert Augmentation(0, (9, 8, 7, 6, 5, 4, 3, 2, 1, 0)).apply(np.array([[0, 1, 9]], np.uint8)).tolist() == [
        [9, 8, 0]
    ]
    shifted = (*range(1, 10), 0)
    assert Augmentation(0, shifted).apply(np.array([[0, 8, 9]], np.uint8)).tolist() == [[1, 9, 0]]
