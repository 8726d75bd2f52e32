"""RE-ARC's and a user's generators: pure functions of their key, checked, and never a hang."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from arc_ray.config.sources import PluginSource, RearcSource
from arc_ray.errors import UserError
from arc_ray.seeding import python_random_for
from arc_ray.tasks import generators
from arc_ray.tasks.examples import MAX_ATTEMPTS, Draw, Example, as_grid, pso_difficulties, try_until_accepted
from arc_ray.tasks.task import Grid, Pair, largest_side, same_grid

TASKS = ("007bbfb7", "11852cab", "25d487eb", "484b58aa", "5daaa586", "6cf79266", "ce602527", "e73095fd")
"""Some with many rejects of every kind, and some that work on sets of cells."""

GOOD = Draw([[1, 2]], [[2, 1]])

grids = hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 3))


def make(
    task_id: str, index: int = 0, seed: int = 0, difficulty: tuple[float, float] = (0, 1), max_side: int = 30
) -> Example:
    source = RearcSource(kind="rearc", seed=seed, difficulty=difficulty, max_side=max_side)
    return generators.rearc_example(source, task_id, index)


def as_tuples(grid: Grid | None) -> tuple[tuple[int, ...], ...]:
    assert grid is not None
    return tuple(map(tuple, grid.tolist()))


def content(example: Example) -> str:
    assert example.pair is not None
    grids = as_tuples(example.pair.input), as_tuples(example.pair.output)
    return repr((grids, sorted(example.rejects.items()), example.rng_difficulty))


def plugin_source(**changes: Any) -> PluginSource:
    values = {"kind": "plugin", "generate": "example_plugins:mirrored", "dataset": "mine", "task_id": "mirror"}
    return PluginSource.model_validate(values | changes)


def test_all_400_tasks_are_there_in_order():
    assert len(generators.rearc_ids()) == 400
    assert list(generators.rearc_ids()) == sorted(generators.rearc_ids())


def test_examples_pass_the_verifiers_of_the_published_package():
    """Would catch a verifier that is never called, and a loader that breaks a later import of the package."""
    from reasoning_gym.arc.rearc_utils import verifiers

    rejects: Counter[str] = Counter()
    for task_id in TASKS:
        for example in (make(task_id, index) for index in range(8)):
            assert example.outcome == "accepted"
            assert example.pair is not None
            verified = getattr(verifiers, f"verify_{task_id}")(as_tuples(example.pair.input))
            assert as_tuples(example.pair.output) == verified
            assert not same_grid(example.pair.input, example.pair.output)
            assert example.attempts == 1 + example.rejects.total()
            rejects += example.rejects
    assert rejects["unverified"] > 10
    assert rejects["degenerate"] > 3


def test_bytes_are_the_same_in_other_processes_and_under_other_hash_seeds():
    """Would catch `hash()`, global random state, or the order of a set in what an index yields."""
    program = (
        "import sys; from test_rearc import TASKS, content, make; made = [content(make(t, 3, 5)) for t in TASKS];"
        " sys.stdout.write('\\n'.join(made))"
    )
    here = [content(make(task_id, 3, 5)) for task_id in TASKS]
    for hash_seed in ("1", "777"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout.split("\n") == here


def test_the_package_itself_is_not_imported():
    """Would catch an import of every environment of reasoning-gym in every worker (ten seconds where it is cold)."""
    program = "import sys; from arc_ray.tasks import generators; generators.rearc_ids(); print('reasoning_gym' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_every_part_of_the_key_matters():
    """Would catch neighbouring seeds or indices that share examples, as in reasoning-gym's own dataset."""
    keys = [(task_id, index, seed) for task_id in TASKS[:3] for index in range(4) for seed in range(4)]
    assert len({content(make(*key)) for key in keys}) == len(keys)


def test_difficulty_is_that_of_the_accepted_attempt_alone():
    """Would catch RE-ARC's own bug: draws of rejected attempts that enter the next one's mean."""
    examples = ((index, make("484b58aa", index)) for index in range(20))
    index, example = next((index, example) for index, example in examples if example.attempts > 1)
    rng = python_random_for(0, "rearc", "484b58aa", index, example.attempts - 1)
    made = generators._library().generate["484b58aa"](rng, 0, 1)
    assert example.pair is not None
    assert as_tuples(example.pair.input) == made["input"]
    samples = rng.difficulty_samples  # pyright: ignore[reportAttributeAccessIssue]
    assert example.rng_difficulty == pytest.approx(sum(samples) / len(samples))


def test_difficulty_bounds_shift_sizes():
    sizes = [
        np.mean([make("00d62c1b", index, difficulty=bounds).pair.input.size for index in range(10)])  # pyright: ignore
        for bounds in ((0.0, 0.1), (0.9, 1.0))
    ]
    assert sizes[0] * 3 < sizes[1]


def test_max_side_rejects_larger_grids():
    examples = [make("00d62c1b", index, max_side=12) for index in range(10)]
    assert all(example.pair and largest_side([example.pair]) <= 12 for example in examples)
    assert sum((example.rejects for example in examples), Counter())["too_large"] > 5


def test_a_task_that_cannot_fit_gives_up():
    example = make("007bbfb7", max_side=1)
    assert (example.outcome, example.attempts, example.pair) == ("gave_up", MAX_ATTEMPTS, None)


def test_pso_difficulty_is_re_arcs():
    from reasoning_gym.arc.rearc_utils.utils import get_pso_difficulty

    pairs = [pair for i, task_id in enumerate(generators.rearc_ids()[::20]) if (pair := make(task_id, i).pair)]
    theirs = [get_pso_difficulty({"input": as_tuples(p.input), "output": as_tuples(p.output)}) for p in pairs]
    assert pso_difficulties(pairs) == pytest.approx(theirs)


@given(st.lists(st.tuples(grids, grids), max_size=4))
def test_pso_difficulty_counts_patches_of_any_shape(values: list[tuple[Grid, Grid]]):
    """Would catch patches that run into the next grid on the common canvas, and labels out of order."""

    def patches(grid: Grid) -> int:
        left, count = {tuple(cell) for cell in np.argwhere(grid >= 0).tolist()}, 0
        while left:
            count, edge = count + 1, [left.pop()]
            while edge:
                r, c = edge.pop()
                near = {(r + 1, c), (r - 1, c), (r, c + 1), (r, c - 1)} & left
                same = {cell for cell in near if grid[cell] == grid[r, c]}
                left -= same
                edge += same
        return count

    expected = [
        ((a.size + b.size) / 1800 + len({*a.flat, *b.flat}) / 10 + (patches(a) / a.size + patches(b) / b.size) / 2) / 3
        for a, b in values
    ]
    assert pso_difficulties([Pair(*value) for value in values]) == pytest.approx(expected)


@given(grids)
def test_valid_grids_are_read_from_any_container(grid: Grid):
    for value in (grid, grid.astype(np.int64), grid.tolist(), as_tuples(grid), list(grid.astype(np.int32))):
        assert same_grid(as_grid(value), grid)


@pytest.mark.parametrize(
    "value",
    [
        [],
        [[]],
        [[], []],
        [[1, 2], [3]],
        [[1], [2, 3, 4]],  # as many cells as a rectangle has
        [[10]],
        [[-1]],
        [[256]],
        [[1.0]],
        [["1"]],
        [1, 2],
        ((1, 2), 3),
        [[0] * 31],
        [[0]] * 31,
        None,
        7,
        "12",
        frozenset({(1, 2)}),
        [[[1]]],
        np.zeros((2, 2)),
    ],
)
def test_what_is_no_grid_is_refused(value: object):
    assert as_grid(value) is None


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (Draw([[1, 2], [3]], [[1]]), "invalid_grid"),
        (Draw([[1]], [[12]]), "invalid_grid"),
        (Draw([[1] * 9], [[1]]), "too_large"),
        (Draw([[1]], [[1] * 9]), "too_large"),
        (Draw([[1]], [[2]]), "unverified"),
        (Draw([[5]], [[5]]), "verifier_error"),
        (Draw([[7]], [[7]]), "degenerate"),
        (None, "generator_error"),
    ],
)
def test_each_reason_to_reject_is_counted_and_the_next_attempt_taken(bad: Draw | None, reason: str):
    def draw(attempt: int) -> Draw:
        if attempt < 2 and bad is None:
            raise IndexError("attempt")
        return bad if bad and attempt < 2 else GOOD

    def is_right(made: Draw) -> bool:
        if made.input == [[5]]:
            raise ValueError("five")
        return made is GOOD or made.output == [[7]]

    example = try_until_accepted(draw, is_right, max_side=8)
    assert example.outcome == "accepted"
    assert example.rejects == {reason: 2}
    assert example.attempts == 3
    assert (example.error is not None) == (reason.endswith("_error") or reason == "invalid_grid")


@pytest.mark.parametrize("swallows", [False, True], ids=["plain", "swallows the first alarm"])
def test_a_hang_is_interrupted_and_the_alarm_put_away(swallows: bool):
    """Would catch a limit that is only looked at between attempts, or that an `except` in a generator defeats."""

    def draw(attempt: int) -> Draw:
        if swallows:
            try:
                while True:
                    pass
            except BaseException:
                pass
        while True:
            pass

    before = signal.getsignal(signal.SIGALRM)
    started = time.monotonic()
    example = try_until_accepted(draw, bool, time_limit_seconds=0.2)
    assert time.monotonic() - started < 5
    assert (example.outcome, example.pair, example.attempts) == ("timed_out", None, 1)
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_the_time_limit_covers_all_attempts_together():
    def draw(attempt: int) -> Draw:
        time.sleep(0.05)
        return Draw([[1]], [[1]])

    example = try_until_accepted(draw, bool, time_limit_seconds=0.6)
    assert example.outcome == "timed_out"
    assert 2 <= example.attempts <= 12


def test_global_random_state_is_left_alone():
    random.seed(1)
    expected = random.random()
    random.seed(1)
    make("00d62c1b")
    assert random.random() == expected


def test_plugin_examples_are_pure_and_verified():
    source = plugin_source(verify="example_plugins:unmirror", difficulty=(0.1, 0.5))
    first, again, other = (generators.plugin_example(source, index) for index in (4, 4, 5))
    assert content(first) == content(again) != content(other)
    assert first.pair is not None
    assert same_grid(first.pair.output, first.pair.input[:, ::-1])
    refused = generators.plugin_example(plugin_source(verify="example_plugins:refuse"), 0)
    assert (refused.outcome, refused.rejects["unverified"] > 50) == ("gave_up", True)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_such_module:f", "there is no module no_such_module"),
        ("no.such.module:f", "there is no module no.such.module"),
        ("example_plugins:miror", "did you mean unmirror|did you mean mirrored"),
        ("example_plugins:NOT_A_FUNCTION", "is a int; name a function"),
        ("example_plugins:returns_rubbish", r"return a pair \(input, output\)"),
    ],
)
def test_a_users_mistake_is_named(path: str, message: str):
    with pytest.raises(UserError, match=message):
        generators.plugin_example(plugin_source(generate=path), 0)


def test_an_import_that_fails_is_named(tmp_path, monkeypatch):
    (tmp_path / "broken_plugin.py").write_text("import surely_not_installed\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"importing broken_plugin raised ModuleNotFoundError.*surely_not_installed"):
        generators.resolve("broken_plugin:f")
