"""Trackers show what metrics.jsonl says, also after a run that was cut off; those that are not installed are asked for."""

import json
import struct
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import config_with, tiny_model
from plans import planned

from arc_ray.config import Config
from arc_ray.errors import UserError
from arc_ray.models.estimate import flops_of_steps
from arc_ray.runs.folder import MetricsFile, read_metrics, run_folder
from arc_ray.train.loop import Step
from arc_ray.train.record import (
    TENSORBOARD_FOLDER,
    Measures,
    MetricsLog,
    check_tracker,
    make_tracker,
    metrics_of,
    tracker_environment,
)

RECORDS = [{"step": n, "seconds": n / 2, "train/loss": 1.0 / (n + 1), "train/lr": 1e-3 * n} for n in range(6)]


def config_of(tmp_path: Path, tracker: str) -> Config:
    return config_with(storage=str(tmp_path), name="tracked", train__tracker=tracker)


def shown(tmp_path: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard itself reads from the folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tracked" / TENSORBOARD_FOLDER), size_guidance={"scalars": 0})
    events.Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_tensorboard_shows_each_step_once_after_a_run_that_was_cut_off(tmp_path: Path) -> None:
    """Catches points shown twice or out of order: a run did five steps, but its checkpoint was at two."""
    config = config_of(tmp_path, "tensorboard")
    tracker = make_tracker(config, [])
    for record in RECORDS[:5]:
        tracker.add({**record, "train/loss": 7.0})
    tracker.flush()
    tracker = make_tracker(config, RECORDS[:3])
    for record in RECORDS[3:]:
        tracker.add(record)
    tracker.close()
    MetricsFile(run_folder(config), -1).append(RECORDS)
    found = shown(tmp_path)
    assert found.keys() == {"seconds", "train/loss", "train/lr"}
    for name, points in found.items():
        expected = [(record["step"], record[name]) for record in read_metrics(run_folder(config))]
        assert [step for step, _ in points] == [step for step, _ in expected]
        np.testing.assert_allclose([v for _, v in points], [v for _, v in expected], rtol=1e-6)


def test_a_tracker_that_is_not_installed_is_a_users_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches an ImportError in a worker, after the cluster was started."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"wandb.*arc_ray\[tracking\]"):
        check_tracker(config_of(tmp_path, "wandb"))
    check_tracker(config_of(tmp_path, "none"))


def test_settings_reach_the_workers_but_secrets_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches runs that land in another project on a cluster, and a key that anybody reads in Ray's dashboard."""
    monkeypatch.setenv("WANDB_PROJECT", "arc")
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")  # as the commands do
    told = {"WANDB_PROJECT": "arc", "WANDB_ERROR_REPORTING": "false"}
    assert tracker_environment(config_of(tmp_path, "wandb")) == told
    assert tracker_environment(config_of(tmp_path, "tensorboard")) == {}


def test_mlflow_without_a_server_needs_a_local_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches metrics that are lost with the worker's disk."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = config_with(storage="s3://bucket/runs", train__tracker="mlflow")
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI"):
        check_tracker(config)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example.org")
    check_tracker(config)


def test_mlflow_has_each_step_of_a_run_that_went_on_in_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a run that becomes two when it goes on, metrics that never arrive, and points of the year 1970."""
    mlflow: Any = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = config_of(tmp_path, "mlflow")
    (tmp_path / "tracked").mkdir()
    begun = time.time()
    for part in (RECORDS[:3], RECORDS[3:]):
        tracker = make_tracker(config, [])
        for record in part:
            tracker.add(record)
        tracker.close()
    client = mlflow.tracking.MlflowClient(f"sqlite:///{tmp_path}/tracked/mlflow.db")
    experiment = client.get_experiment_by_name("arc_ray")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "tracked"
    history = client.get_metric_history(run.info.run_id, "train/loss")
    found = sorted((point.step, point.value) for point in history)
    assert found == [(record["step"], record["train/loss"]) for record in RECORDS]
    assert all(begun - 1 <= point.timestamp / 1000 <= time.time() for point in history)


def test_wandb_keeps_the_records_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches an init that asks for a login, and metrics that never arrive in the run's own file."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    (tmp_path / "tracked").mkdir()
    tracker = make_tracker(config_of(tmp_path, "wandb"), [])
    for record in RECORDS:
        tracker.add(record)
    tracker.close()
    (file,) = (tmp_path / "tracked").rglob("*.wandb")
    assert _wandb_history(file) == [metrics_of(record) | {"_step": record["step"]} for record in RECORDS]


def _wandb_history(file: Path) -> list[dict[str, float]]:
    """The history in a run's own file: a header of 7 bytes, then records of checksum, length, kind and message."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, history = file.read_bytes(), 7, []
    while at < len(content):
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        assert kind == 1, "a record that is cut in pieces, which so few metrics do not need"
        record = Record.FromString(content[at + 7 : at + 7 + length])
        at += 7 + length
        if record.HasField("history"):
            items = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
            history.append({name: v for name, v in items.items() if name == "_step" or not name.startswith("_")})
    return history


def test_metrics_that_json_and_ray_refuse_become_plain_or_are_left_out(tmp_path: Path) -> None:
    """Catches the np.float32 that Ray's controller fails on, and the NaN of a gradient norm that nobody computed."""
    reported: list[dict[str, Any]] = []
    config = config_with(storage=str(tmp_path), train__tracker="none")
    log = MetricsLog(config, 0, time.monotonic(), time.perf_counter(), False, reported.append)
    log(1, {"eval/a": np.float32(0.5), "b": np.int64(3), "c": float("nan"), "d": float("inf"), "e": 2})
    [found] = reported
    assert {name: found[name] for name in found if name not in ("step", "seconds")} == {
        "eval/a": 0.5,
        "b": 3.0,
        "e": 2.0,
    }
    assert all(type(value) is float for name, value in found.items() if name != "step")


def test_mfu_is_the_plans_flops_over_the_devices_peak() -> None:
    """Catches MFU of another step's tokens, of one device instead of all, and one made up where no peak is known."""
    plan, model = planned(), tiny_model()
    tokens, flops = plan.tokens_per_step(), flops_of_steps(model, plan)
    measure = Measures(model, plan, num_workers=2, peak=1e9)
    found = measure(Step(1, loss=1.0, lr=0.1, grad_norm=1.0, seconds=0.5, stalled=0.1))
    assert found["train/mfu"] == pytest.approx(flops[1] / (0.5 * 2e9))
    assert found["train/tokens_per_second"] == pytest.approx(tokens[1] / 0.5)
    assert found["train/workers"] == 2
    assert found["train/memory_gb"] > 0.05
    assert "train/mfu" not in Measures(model, plan, 2, None)(Step(1, 1.0, 0.1, 1.0, 0.5, 0.1))


def test_the_wall_knows_of_logging_validation_and_saving(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches tokens a second that nobody sees on the clock, because what stands between two steps is counted nowhere."""
    clock = [10.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    measure, step = Measures(tiny_model(), planned(), 1, None), Step(0, 1.0, 0.1, 1.0, seconds=0.5, stalled=0.1)
    assert measure(step)["train/wall_seconds"] == 0.5, "the first to be measured stands for itself"
    clock[0] += 2.0
    assert measure(replace(step, number=1))["train/wall_seconds"] == 2.0
    clock[0] += 3.0
    assert measure(replace(step, number=3))["train/wall_seconds"] == 1.5, "one step in two is logged"
