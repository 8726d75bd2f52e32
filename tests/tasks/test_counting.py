"""Counting: every answer is checked against a flood fill and cell counts written here, without scipy."""

import hashlib
import os
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from arc_ray.config.sources import CountingSource
from arc_ray.errors import UserError
from arc_ray.tasks.counting import (
    MAX_OBJECTS,
    WORDINGS,
    Answered,
    accuracy_by_kind,
    background_of,
    count_mirror_lines,
    counting_task,
    extent_of,
    objects_of,
)
from arc_ray.tasks.task import Grid, Task, task_to_json

NUM_TASKS = 400
CONNECTIVITIES: tuple[Literal[4, 8], ...] = (4, 8)
NUMBERED = re.compile(r"grid (\d)")

grids = hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 3))


def source(**changes: object) -> CountingSource:
    return CountingSource.model_validate({"kind": "counting", **changes})


@cache
def some_tasks(connectivity: Literal[4, 8] = 8) -> tuple[Task, ...]:
    config = source(connectivity=connectivity)
    return tuple(counting_task(config, index) for index in range(NUM_TASKS))


def flood_fill(grid: Grid, background: int, connectivity: int) -> list[tuple[int, int]]:
    """List (colour, area) of each object, by walking from cell to cell."""
    reach = 1 if connectivity == 4 else 2
    left = {(r, c) for r, c in np.ndindex(grid.shape) if grid[r, c] != background}
    objects = []
    while left:
        start = left.pop()
        todo, area, color = [start], 0, grid[start]
        while todo:
            row, column = todo.pop()
            area += 1
            for dr, dc in [(dr, dc) for dr in (-1, 0, 1) for dc in (-1, 0, 1) if 0 < dr * dr + dc * dc <= reach]:
                near = row + dr, column + dc
                if near in left and grid[near] == color:
                    left.remove(near)
                    todo.append(near)
        objects.append((int(color), area))
    return sorted(objects)


def mirror_lines(grid: Grid) -> int:
    """Count mirror lines cell by cell; a line exists only if it maps the grid's shape to itself."""
    height, width = grid.shape
    cells = list(np.ndindex(height, width))
    found = all(grid[r, c] == grid[r, width - 1 - c] for r, c in cells)
    found += all(grid[r, c] == grid[height - 1 - r, c] for r, c in cells)
    if height == width:
        found += all(grid[r, c] == grid[c, r] for r, c in cells)
        found += all(grid[r, c] == grid[width - 1 - c, width - 1 - r] for r, c in cells)
    return found


def expected_answer(kind: str, color: int | None, grid: Grid, connectivity: int) -> str:
    """Answer a question about one grid from scratch."""
    counts = Counter(grid.ravel().tolist())
    background = counts.most_common(1)[0][0]
    objects = flood_fill(grid, background, connectivity)
    areas = sorted(area for _, area in objects)
    answers = {
        "objects": len(objects),
        "areas": ", ".join(str(area) for area in areas),
        "biggest": areas[-1],
        "smallest": areas[0],
        "objects_of_color": sum(c == color for c, _ in objects),
        "background": background,
        "cells_of_color": sum(cell == color for cell in grid.ravel().tolist()),
        "symmetry": mirror_lines(grid),
    }
    return str(answers[kind])


@pytest.mark.parametrize("connectivity", CONNECTIVITIES)
def test_every_answer_is_true_for_the_grid_as_drawn(connectivity: Literal[4, 8]) -> None:
    """Would catch labels that come from what was meant to be drawn, from the other connectivity or another grid."""
    seen: Counter[str] = Counter()
    for task in some_tasks(connectivity):
        grids = [pair.input for pair in task.test]
        for question in task.questions:
            seen[question.kind] += 1
            if question.kind == "which_grid":
                counts = [len(flood_fill(grid, background_of(grid), connectivity)) for grid in grids]
                assert counts.count(max(counts)) == 1
                assert question.answer == str(counts.index(max(counts)) + 1)
                continue
            numbered = NUMBERED.search(question.text)
            assert (numbered is None) == (len(grids) == 1)
            grid = grids[int(numbered.group(1)) - 1 if numbered else 0]
            color = re.search(r"color (\d)", question.text)
            asked = int(color.group(1)) if color else None
            assert asked is None or asked in grid
            assert question.answer == expected_answer(question.kind, asked, grid, connectivity), question
    assert set(seen) == set(WORDINGS)
    assert min(seen.values()) >= 50


def test_connectivity_changes_labels() -> None:
    """Would catch a check above that passes because no grid tells the two connectivities apart."""
    grids = [pair.input for task in some_tasks() for pair in task.test]
    assert sum(len(objects_of(grid, 4)) != len(objects_of(grid, 8)) for grid in grids) > len(grids) / 10


@given(grids, st.sampled_from(CONNECTIVITIES))
def test_objects_equal_a_flood_fill_on_any_grid(grid: Grid, connectivity: Literal[4, 8]) -> None:
    """Would catch an error on grids that are never drawn: dense, striped, of one colour."""
    assert sorted(objects_of(grid, connectivity)) == flood_fill(grid, background_of(grid), connectivity)


@given(grids, st.booleans(), st.booleans())
def test_mirror_lines_are_counted_on_any_grid_and_survive_symmetries(grid: Grid, down: bool, across: bool) -> None:
    """Would catch an answer that turns false once a view is turned or mirrored."""
    grid = np.concatenate([grid, grid[::-1]], axis=0) if down else grid
    grid = np.concatenate([grid, grid[:, ::-1]], axis=1) if across else grid
    assert count_mirror_lines(grid) == mirror_lines(grid) >= down + across
    assert {count_mirror_lines(np.rot90(turned, k)) for turned in (grid, grid.T) for k in range(4)} == {
        mirror_lines(grid)
    }


def test_grids_keep_the_rules() -> None:
    """Would catch an ambiguous background, an empty grid, a list of areas without end, a side that is too long."""
    config = source(max_side=11)
    for index in range(NUM_TASKS):
        task = counting_task(config, index)
        assert task.train == ()
        for pair in task.test:
            assert pair.output is None
            assert pair.input.dtype == np.uint8
            assert 3 <= min(pair.input.shape) <= max(pair.input.shape) <= 11
            assert 2 * np.count_nonzero(pair.input == background_of(pair.input)) > pair.input.size
            assert 1 <= len(objects_of(pair.input, 8)) <= MAX_OBJECTS
        assert 1 <= len(task.questions) <= 11


def test_curriculum_and_variety() -> None:
    """Would catch sizes drawn uniformly, a colour or background never used, a question with always one answer."""
    single = [task.test[0].input for task in some_tasks() if len(task.test) == 1]
    sides = np.array([max(grid.shape) for grid in single])
    areas = np.array([grid.size for grid in single])
    assert (areas <= 100).sum() > 1.5 * (areas > 100).sum()
    assert {3, 20} <= set(sides.tolist())
    backgrounds = Counter(background_of(grid) for grid in single)
    assert 0.7 < backgrounds[0] / len(single) < 0.9
    assert set(backgrounds) == set(range(10))
    assert {color for grid in single for color in np.unique(grid).tolist()} == set(range(10))
    assert {len(objects_of(grid, 8)) for grid in single} >= set(range(1, 8))
    several = sum(len(task.test) > 1 for task in some_tasks()) / NUM_TASKS
    assert 0.12 < several < 0.28
    for kind in WORDINGS:
        answers = Counter(q.answer for task in some_tasks() for q in task.questions if q.kind == kind)
        assert len(answers) >= 3
        assert answers.most_common(1)[0][1] < 0.85 * answers.total()


def test_areas_ascend_and_agree_with_the_other_questions() -> None:
    """Would catch areas sorted as text (10 before 9)."""
    for task in some_tasks():
        answers = {q.kind: q.answer for q in task.questions}
        if len(task.test) == 1:
            areas = [int(area) for area in answers["areas"].split(", ")]
            assert areas == sorted(areas)
            assert (str(len(areas)), str(areas[0]), str(areas[-1])) == (
                answers["objects"],
                answers["smallest"],
                answers["biggest"],
            )


def test_words_are_few_and_no_question_is_asked_twice() -> None:
    """Would catch wordings that a small vocabulary cannot hold, and a question repeated about one grid."""
    texts = [q.text for task in some_tasks() for q in task.questions]
    assert len({word for text in texts for word in re.findall(r"[A-Za-z]+", text)}) <= 30
    assert all(len({q.text for q in task.questions}) == len(task.questions) for task in some_tasks())


@pytest.mark.parametrize("kind", [*WORDINGS])
def test_one_kind_alone_can_be_asked(kind: str) -> None:
    """Would catch tasks without a question: most tasks hold one grid, in which "which grid" cannot be asked."""
    config = source(questions=[kind])
    for index in range(40):
        assert {q.kind for q in counting_task(config, index).questions} == {kind}


def test_choice_of_kinds_does_not_change_the_grids() -> None:
    """Would catch an ablation of question kinds that also changes the data asked about."""
    fewer = source(questions=["objects", "which_grid"])
    for index, task in enumerate(some_tasks()[:40]):
        other = counting_task(fewer, index)
        assert [pair.input.tolist() for pair in other.test] == [pair.input.tolist() for pair in task.test]
        assert {q.kind for q in other.questions} <= {"objects", "which_grid"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"questions": ["objects", "colour"]}, "questions: there is no 'colour'; choose of objects, areas, biggest"),
        ({"questions": []}, "questions: none is named; choose of objects"),
        ({"max_side": 2}, "max_side = 2: a counting grid needs at least 3"),
    ],
)
def test_config_that_cannot_work_is_refused(changes: dict[str, object], reason: str) -> None:
    """Would catch a misspelt kind that is silently never asked, and a loop that draws for ever."""
    config = source(**changes)
    with pytest.raises(UserError) as caught:
        counting_task(config, 0)
    assert str(caught.value).startswith(reason)


def fingerprint(seed: int) -> str:
    """Digest some tasks; called here and in other processes."""
    config = source(seed=seed)
    tasks = [counting_task(config, index) for index in (0, 7, 123, 10**9)]
    return hashlib.sha256(repr([(task.id, task_to_json(task)) for task in tasks]).encode()).hexdigest()


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_other_processes_draw_the_same(hash_seed: str) -> None:
    """Would catch randomness from `hash`, from set order or from a global generator."""
    program = "from test_counting import fingerprint; print(fingerprint(5))"
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == fingerprint(5)


def test_index_and_seed_alone_decide() -> None:
    """Would catch state between calls, ids shared by two seeds, and numpy's integers (whose repr differs) as keys."""
    config = source()
    again = counting_task(config, np.int64(17))  # pyright: ignore[reportArgumentType]
    assert task_to_json(again) == task_to_json(some_tasks()[17])
    assert again.id == "count-0-000017"
    assert counting_task(source(seed=1), 17).id == "count-1-000017"
    assert fingerprint(5) != fingerprint(6)
    assert len({repr(task_to_json(task)) for task in some_tasks()}) > 0.95 * NUM_TASKS


def test_extent_is_the_largest_of_a_tasks_grids() -> None:
    """Would catch the difficulty of a task with several grids being that of its first."""
    task = next(task for task in some_tasks() if len({pair.input.shape for pair in task.test}) == 3)
    height, width, num_objects = extent_of(task, 8)
    assert height == max(len(pair.input) for pair in task.test)
    assert width == max(len(pair.input[0]) for pair in task.test)
    assert num_objects == max(len(flood_fill(p.input, background_of(p.input), 8)) for p in task.test)


def test_accuracy_is_averaged_by_kind_side_and_objects() -> None:
    """Would catch a bucket with a wrong edge and an average over the wrong group."""
    records = [
        Answered("objects", 5, 3, 2, True),
        Answered("objects", 6, 3, 2, False),
        Answered("objects", 3, 10, 8, True),
        Answered("areas", 11, 11, 2, False),
    ]
    accuracy = accuracy_by_kind(records)
    assert accuracy["accuracy/objects"] == pytest.approx(2 / 3)
    assert accuracy["accuracy/objects/of"] == 3
    assert (accuracy["accuracy/objects/side_01_05"], accuracy["accuracy/objects/side_01_05/of"]) == (1, 1)
    assert (accuracy["accuracy/objects/side_06_10"], accuracy["accuracy/objects/side_06_10/of"]) == (0.5, 2)
    assert (accuracy["accuracy/objects/objects_02"], accuracy["accuracy/objects/objects_02/of"]) == (0.5, 2)
    assert (accuracy["accuracy/areas/side_11_15"], accuracy["accuracy/areas/of"]) == (0, 1)
    assert (accuracy["accuracy"], accuracy["accuracy/of"]) == (0.5, 4)
    assert accuracy["accuracy/all/objects_02/of"] == 3
    assert accuracy_by_kind([]) == {}
