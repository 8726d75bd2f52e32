"""The 16 x 10! transformations of a task: each can be undone, named, and computed as a gather of cells."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from arc_ray.augment import SAME_COLORS, Augmentation, cell_order, parse_augmentation, swaps_sides
from arc_ray.tasks import Grid, Pair, Question, Task

grids = hnp.arrays(np.uint8, st.tuples(st.integers(1, 7), st.integers(1, 7)), elements=st.integers(0, 9))
colors = st.permutations(SAME_COLORS).map(tuple)
augmentations = st.builds(Augmentation, st.integers(0, 7), colors | st.just(SAME_COLORS))


@settings(deadline=None)
@given(augmentations, grids)
def test_inverting_gives_the_grid_back(augmentation: Augmentation, grid: Grid):
    """Would catch answers that are turned back the wrong way round: right ones would be scored as wrong."""
    turned = augmentation.apply(grid)
    assert turned.dtype == np.uint8
    assert np.array_equal(augmentation.invert(turned), grid)
    assert np.array_equal(augmentation.apply(augmentation.invert(grid)), grid)


@settings(deadline=None)
@given(augmentations)
def test_a_name_is_read_back(augmentation: Augmentation):
    assert parse_augmentation(augmentation.name) == augmentation


@settings(deadline=None)
@given(augmentations, augmentations)
def test_names_are_unique(a: Augmentation, b: Augmentation):
    assert (a.name == b.name) == (a == b)


def test_names_are_those_that_prediction_files_hold():
    """Would catch a renaming after which the views of old predictions are others."""
    assert Augmentation().name == "same"
    assert Augmentation(5, (0, 3, 1, 2, 4, 5, 6, 7, 8, 9)).name == "transpose.turn1.colors0312456789"
    assert [Augmentation(s).name for s in range(1, 5)] == ["turn1", "turn2", "turn3", "transpose"]


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            ".",
            "same.",
            "turn",
            "turn0",
            "turn4",
            "transpose.",
            "transposeturn1",
            "turn1transpose",
            "turn1.transpose",
        ),
        *("colors", "colors012345678", "colors01234567890", "colors0012345678", "turn1.", ".turn1", "same.turn1"),
        *("colors0123456789", "colors٠312456789", "Turn1", " turn1", "turn1\n"),
    ],
)
def test_what_is_no_name_is_refused(name: str):
    """Would catch a second spelling of one view, which a vote would count twice."""
    with pytest.raises(ValueError, match=r"no name|bijection"):
        parse_augmentation(name)


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


def test_a_task_is_transformed_pair_by_pair_and_loses_what_may_no_longer_be_true():
    """Would catch a hidden output that becomes a grid, and a question about the colour blue of a recoloured grid."""
    a, b = np.array([[1, 2]], np.uint8), np.array([[3], [4]], np.uint8)
    task = Task("t", (Pair(a, b),), (Pair(b, None),), (Question("colours", "Which?", "1"),), "blue lines")
    turned = Augmentation(2, (*range(1, 10), 0)).apply_to_task(task)
    assert turned.id == "t"
    assert turned.train[0].input.tolist() == [[3, 2]]
    assert turned.train[0].output is not None
    assert turned.train[0].output.tolist() == [[5], [4]]
    assert turned.test[0].output is None
    assert (turned.questions, turned.description) == ((), None)
