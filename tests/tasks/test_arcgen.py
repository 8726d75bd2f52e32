"""ARC-GEN's generators: pure functions of their key in a process of their own, which neither hangs nor stays."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from small_clone import BODIES, COMMON, write_clone

from arc_ray.config.sources import ArcGenSource
from arc_ray.errors import UserError
from arc_ray.seeding import digest64
from arc_ray.tasks import generators
from arc_ray.tasks.examples import Example
from arc_ray.tasks.generators import arcgen_digest, arcgen_example, arcgen_ids


def source_of(path: str | Path, **changes: Any) -> ArcGenSource:
    return ArcGenSource.model_validate({"kind": "arcgen", "path": str(path), "time_limit_seconds": 10, **changes})


def content(example: Example) -> Any:
    assert example.pair is not None, example
    assert example.pair.output is not None
    return example.pair.input.tolist(), example.pair.output.tolist()


def process_of(path: str) -> int:
    return generators._PROCESSES[path]._popen.pid


def is_alive(pid: int) -> bool:
    """Whether there is such a process that does not only wait to be buried."""
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def test_examples_are_what_the_generator_draws_from_a_seeded_random(tmp_path: Path):
    """Would catch a draw that goes on with the state that another draw has left."""
    path = write_clone(tmp_path / "clone", "00000001")
    made = [content(arcgen_example(source_of(path, seed=4), "00000001", index)) for index in (2, 0, 1)]
    program = (
        "import json, random, sys; sys.path[:0] = [sys.argv[1], sys.argv[1] + '/tasks']; import task_00000001 as task\n"
        "for seed in map(int, sys.argv[2:]): random.seed(seed); made = task.generate(); print(json.dumps(list(made.values())))"
    )
    seeds = [str(digest64(4, "arcgen", "00000001", index, 0)) for index in (2, 0, 1)]
    theirs = subprocess.run([sys.executable, "-c", program, path, *seeds], capture_output=True, text=True, check=True)
    assert [repr(list(pair)) for pair in made] == theirs.stdout.splitlines()


def test_examples_depend_on_their_key_alone(tmp_path: Path):
    """Would catch draws that depend on what was drawn before, on the process or on the hash seed; keys that collide."""
    path = write_clone(tmp_path / "clone", "00000001", "00000002")
    keys = [(task_id, index, seed) for task_id in ("00000001", "00000002") for index in range(4) for seed in range(3)]
    made = {key: content(arcgen_example(source_of(path, seed=key[2]), *key[:2])) for key in keys}
    assert len({repr(pair) for pair in made.values()}) == len(keys)
    generators._PROCESSES.pop(path).end()
    for key in reversed(keys):
        assert content(arcgen_example(source_of(path, seed=key[2]), *key[:2])) == made[key]
    program = (
        "import sys; from test_arcgen import *; print([content(arcgen_example(source_of(sys.argv[1]), '00000002', i))"
        " for i in range(4)])"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "777"}
    done = subprocess.run([sys.executable, "-c", program, path], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == repr([made["00000002", index, 0] for index in range(4)]), done.stderr


def test_nothing_of_this_process_and_of_the_clone_is_touched(tmp_path: Path):
    """Would catch a seeded global `random`, a `common` or a path that stays, and bytecode in the user's folder."""
    path = write_clone(tmp_path / "clone", "00000001")
    files = sorted(file.name for file in Path(path).rglob("*"))
    before = random.getstate(), list(sys.path), "common" in sys.modules
    arcgen_example(source_of(path), "00000001", 0)
    assert (random.getstate(), list(sys.path), "common" in sys.modules) == before
    assert sorted(file.name for file in Path(path).rglob("*")) == files


def test_each_clone_has_its_own_common(tmp_path: Path):
    """Would catch one process for all clones, where the first `common` serves them all."""
    ones = write_clone(tmp_path / "ones", "00000001", common=COMMON.replace("randint(0, 9)", "randint(1, 2)"))
    full = write_clone(tmp_path / "full", "00000001")
    assert arcgen_digest(ones) != arcgen_digest(full)
    for path, colors in ((full, range(10)), (ones, (1, 2)), (full, range(10))):
        cells = [
            cell for i in range(9) for row in content(arcgen_example(source_of(path), "00000001", i))[0] for cell in row
        ]
        assert set(cells) == set(colors)


def test_a_hanging_draw_is_ended_and_costs_no_other_one(tmp_path: Path):
    """Would catch a process that hangs on beside the next one, and examples that change because one of them hung."""
    path = write_clone(tmp_path / "clone", "0000dead")
    hasty = source_of(path, time_limit_seconds=0.2)
    outcomes = [arcgen_example(hasty, "0000dead", index) for index in range(6)]
    assert {example.outcome for example in outcomes} == {"accepted", "timed_out"}
    pids = set()
    for index in (index for index, example in enumerate(outcomes) if example.outcome == "accepted"):
        assert content(arcgen_example(source_of(path), "0000dead", index)) == content(outcomes[index])
        pids.add(process_of(path))
    [pid] = pids  # one process is kept where nothing goes wrong
    arcgen_example(hasty, "0000dead", [example.outcome for example in outcomes].index("timed_out"))
    assert not is_alive(pid)


def test_a_hanging_draw_without_cpu_time_is_given_up_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(BODIES, "bad0slep", "import time; time.sleep(1000)")
    monkeypatch.setattr(generators, "WALL_FACTOR", 1)
    path = write_clone(tmp_path / "clone", "bad0slep")
    assert arcgen_example(source_of(path, time_limit_seconds=0.1), "bad0slep", 0).outcome == "timed_out"


@pytest.mark.parametrize(
    ("task_id", "reason", "error"),
    [
        ("bad0rais", "generator_error", "LookupError: no such colour"),
        ("bad0none", "generator_error", "TypeError"),
        ("bad0exit", "generator_error", "ended its process with exit code 3"),
        ("bad0size", "invalid_grid", r"30 rows of \[31\] cells"),
        ("bad0colr", "invalid_grid", r"\[\[1, 12\]\]"),
    ],
)
def test_what_a_generator_does_wrong_is_counted_and_kept(
    task_id: str, reason: str, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Would catch an error that only says that something was wrong."""
    monkeypatch.setattr("arc_ray.tasks.examples.MAX_ATTEMPTS", 3)
    path = write_clone(tmp_path / "clone", task_id)
    example = arcgen_example(source_of(path), task_id, 0)
    assert (example.outcome, dict(example.rejects)) == ("gave_up", {reason: 3})
    assert re.search(error, example.error or "")


def test_a_folder_without_generators_is_no_clone(tmp_path: Path):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError, match=r"there is no generator \(tasks/task_<id>.py\).*clone of ARC-GEN"):
            arcgen_ids(str(path))


@pytest.mark.parametrize("task_id", ["00000001", "bad0hang"])
def test_the_process_ends_with_the_one_that_it_serves(task_id: str, tmp_path: Path):
    """Would catch a process that a killed worker leaves, idle or hanging."""
    path = write_clone(tmp_path / "clone", "00000001", task_id)
    program = (
        "import sys; from test_arcgen import *; source = source_of(sys.argv[1], time_limit_seconds=2)\n"
        "arcgen_example(source, '00000001', 0); print(process_of(source.path), flush=True)\n"
        "arcgen_example(source, sys.argv[2], 0); signal.pause()"
    )
    with subprocess.Popen([sys.executable, "-c", program, path, task_id], stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        pid = int(worker.stdout.readline())
        worker.send_signal(signal.SIGKILL)
    while is_alive(pid):
        time.sleep(0.02)
