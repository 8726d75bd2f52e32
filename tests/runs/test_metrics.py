"""metrics.jsonl while it is written and watched: nothing is lost, written twice or waited for, and time adds up."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from builders import config_with

from arc_ray.config import Config
from arc_ray.runs.folder import METRICS_FILE, MetricsFile, MetricsTail, read_metrics, run_folder
from arc_ray.runs.machine import Instant
from arc_ray.storage import Folder
from arc_ray.train import record
from arc_ray.train.record import MetricsLog

RECORDS = [{"step": n, "seconds": float(n), "train/loss": 1.0 / (n + 1)} for n in range(8)]


@pytest.fixture(params=["local", "bucket"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    """A place that can be appended to, and one that is treated as a bucket."""
    (tmp_path / "run").mkdir()
    return Folder.at(str(tmp_path / "run") if request.param == "local" else f"file://{tmp_path}/run")


def whole(folder: Folder) -> bytes:
    return folder.read_bytes(METRICS_FILE)


def test_records_are_added_and_a_run_that_goes_on_drops_what_it_does_again(folder: Folder) -> None:
    """Would catch a torn last line that stops the run, steps shown twice, and time that an early second kill forgets."""
    first = MetricsFile(folder, 0)
    first.append(RECORDS[:2])
    first.append([])
    first.append(RECORDS[2:6])
    assert read_metrics(folder) == RECORDS[:6]
    torn = whole(folder)[:-9]
    folder.write_bytes(METRICS_FILE, torn)
    assert read_metrics(folder) == RECORDS[:5]
    again = MetricsFile(folder, 2)
    assert again.kept == RECORDS[:3]
    assert whole(folder) == torn, "until there are new records, the old ones tell what was spent"
    again.append(RECORDS[3:4])
    again.append(RECORDS[4:])
    assert read_metrics(folder) == RECORDS


def test_a_run_that_begins_anew_keeps_no_record(folder: Folder) -> None:
    """Would catch a second validation of step 0, where a run was stopped between it and the first checkpoint."""
    MetricsFile(folder, 0).append(RECORDS[:2])
    again = MetricsFile(folder, 0)
    assert again.kept == []
    again.append(RECORDS)
    assert read_metrics(folder) == RECORDS


def test_locally_only_what_is_new_is_written(tmp_path: Path) -> None:
    """Would catch a file that is written anew each second: 20,000 records are four megabytes."""
    file = MetricsFile(Folder.at(str(tmp_path)), 0)
    file.append(RECORDS[:1])
    place = (tmp_path / METRICS_FILE).stat().st_ino
    file.append(RECORDS[1:])
    assert (tmp_path / METRICS_FILE).stat().st_ino == place


def test_a_watcher_reads_only_what_is_new(folder: Folder) -> None:
    """Would catch a watcher that parses the whole file each second: what it has read may be rubbish by now."""
    tail, file = MetricsTail(folder), MetricsFile(folder, 0)
    tail.look()
    assert (tail.newest, tail.validation) == ({}, None)
    file.append([RECORDS[0] | {"eval/solved": 0.5}])
    tail.look()
    assert (tail.newest["step"], tail.validation) == (0, RECORDS[0] | {"eval/solved": 0.5})
    length = len(whole(folder))
    file.append(RECORDS[1:4])
    folder.write_bytes(METRICS_FILE, b"?" * length + whole(folder)[length:-4])
    tail.look()
    assert (tail.newest["step"], tail.newest["eval/solved"]) == (2, 0.5), "the last line is not whole yet"


@pytest.mark.parametrize("kept", range(4))
def test_a_watcher_begins_again_where_the_file_was_cut(folder: Folder, kept: int) -> None:
    """Would catch a watcher that stops at the step where a run was killed, or fails in the middle of a line."""
    MetricsFile(folder, 0).append(RECORDS[:4])
    tail = MetricsTail(folder)
    tail.look()
    again = [{**record, "train/lr": 0.1} for record in RECORDS[kept + 1 :]]
    MetricsFile(folder, kept).append(again)
    tail.look()
    assert (tail.newest["step"], tail.newest["train/lr"]) == (7, 0.1)


def log_of(
    config: Config, first_step: int = 0, spent: float = 0.0, report: Callable[[Any], None] = lambda record: None
) -> MetricsLog:
    run_folder(config).local_path().mkdir(exist_ok=True)
    return MetricsLog(config, first_step, time.monotonic() - spent, time.perf_counter(), True, report)


def config_in(tmp_path: Path, tracker: str = "tensorboard") -> Config:
    return config_with(storage=str(tmp_path), name="run", train__tracker=tracker)


def test_training_waits_for_its_metrics_at_validations_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a slow disk or upload that stalls the GPUs, and a validation that is reported before it is there."""
    may_go_on, reported = threading.Event(), []
    append = MetricsFile.append

    def slow(self: MetricsFile, records: Any) -> None:
        assert may_go_on.wait(60)
        append(self, records)

    monkeypatch.setattr(MetricsFile, "append", slow)
    monkeypatch.setitem(record.WRITE_METRICS_SECONDS, "local", 0.0)
    config = config_in(tmp_path)
    log = log_of(config, report=lambda record: reported.append(read_metrics(run_folder(config))))
    for step in (1, 2, 3):
        log(step, {"train/loss": 1.0})
    assert read_metrics(run_folder(config)) == []
    may_go_on.set()
    log(4, {"eval/solved": 0.5})
    assert [record["step"] for record in reported[0]] == [1, 2, 3, 4]
    log(5, {"train/loss": 1.0})
    log.close()
    assert [record["step"] for record in read_metrics(run_folder(config))] == [1, 2, 3, 4, 5]


def test_metrics_that_cannot_be_written_stop_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch an error on the writing thread that nobody hears of, also when later writes would go well."""

    def fails(self: MetricsFile, records: Any) -> None:
        if records[0]["step"] == 1:
            raise OSError("the disk is full")

    monkeypatch.setattr(MetricsFile, "append", fails)
    log = log_of(config_in(tmp_path, "none"))
    log(1, {"train/loss": 1.0})
    log.flush()
    log(2, {"train/loss": 1.0})
    with pytest.raises(OSError, match="the disk is full"):
        log.close()


def test_the_clock_goes_on_from_what_was_spent(tmp_path: Path) -> None:
    """Would catch `seconds` that begin anew when a run goes on: a run of hours would seem to have cost minutes."""
    config = config_in(tmp_path, "none")
    log = log_of(config)
    log(1, {"train/loss": 1.0})
    log.close()
    log = log_of(config, first_step=1, spent=3600.0)
    log(2, {"train/loss": 1.0})
    log.close()
    first, second = (record["seconds"] for record in read_metrics(run_folder(config)))
    assert first < 60
    assert 3600 <= second < 3660


def test_a_clock_that_is_put_changes_no_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a step that seems to have taken a day because somebody has set the machine's clock meanwhile."""
    config = config_in(tmp_path, "none")
    begun, put = Instant.ago(5.0), time.time() + 86_400
    log = MetricsLog(config, 0, begun.here(), time.perf_counter(), True, lambda record: None)
    monkeypatch.setattr(time, "time", lambda: put)
    log(1, {"train/loss": 1.0})
    log.close()
    (told,) = (record["seconds"] for record in read_metrics(run_folder(config)))
    assert 5 <= told < 65
    assert 5 <= time.monotonic() - begun.here() < 65
