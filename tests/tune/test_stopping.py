"""How trials end: stopped by ASHA as a study uses it (real schedulers, fed what trials would report), or by an error."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from builders import config_with
from ray.exceptions import ActorDiedError, RayTaskError
from ray.train import WorkerGroupError
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from arc_ray.errors import StorageError, UserError
from arc_ray.storage import Folder
from arc_ray.tune.search import Search
from arc_ray.tune.space import trial_folder
from arc_ray.tune.stopping import SCORE, TIME, Apart, Ends, final_errors, make_scheduler, reason_of


def asha() -> AsyncHyperBandScheduler:
    return AsyncHyperBandScheduler(
        time_attr=TIME["tokens"], metric=SCORE, mode="max", max_t=100, grace_period=25, reduction_factor=3
    )


def decisions(scheduler: TrialScheduler, scores: list[tuple[str, float]]) -> list[str]:
    """Let trials (start, score) report one after another after a quarter of their tokens."""
    found = []
    for number, (start, score) in enumerate(scores):
        trial: Any = SimpleNamespace(trial_id=str(number), config={"point": {"start": start, "train.lr": number}})
        scheduler.on_trial_add(None, trial)  # pyright: ignore[reportArgumentType]
        result = {TIME["tokens"]: 25, SCORE: score}
        found.append(scheduler.on_trial_result(None, trial, result))  # pyright: ignore[reportArgumentType]
    return found


ARRIVING = [("base", 0.9), ("base", 0.8), ("count", 0.2), ("count", 0.1), ("base", 0.95), ("count", 0.3)]


def test_arms_do_not_stop_each_other():
    """Would catch a weak arm whose trials all end at the first rung, so that its setting is chosen by its first steps."""
    apart = Apart({'"base"': asha(), '"count"': asha()}, "start")
    assert decisions(apart, ARRIVING) == ["CONTINUE", "STOP", "CONTINUE", "STOP", "CONTINUE", "CONTINUE"]
    together = Apart({"all": asha()}, None)
    assert decisions(together, ARRIVING) == ["CONTINUE", "STOP", "STOP", "STOP", "CONTINUE", "STOP"]


def test_without_early_stopping_all_trials_run():
    assert type(make_scheduler(config_with(tune__scheduler__kind="fifo"), [], None, None)) is FIFOScheduler


@pytest.mark.parametrize(
    "name", ["on_trial_add", "on_trial_error", "on_trial_result", "on_trial_complete", "on_trial_remove"]
)
def test_everything_that_asha_listens_to_is_passed_on(name: str):
    """Would catch a notice that ends in the first-in-first-out scheduler, which does nothing with it."""
    assert name in vars(Apart)


def test_the_reason_of_a_failure_is_its_last_error_whole(tmp_path: Path):
    """Would catch a row that says nothing but "For further information visit ...", or the first of a chain of causes."""
    file = tmp_path / "error.txt"
    file.write_text(
        "Failure # 1\nray.exceptions.RayTaskError(ValueError): ray::_train_trial() (pid=1)\n  File x, line 1\nValueError: a\n\n"
        "pydantic_core.ValidationError: 1 validation error for DeepSpeedZeroConfig\nstage\n  Input should be 0, 1, 2 or 3\n"
    )
    assert reason_of(str(file)) == (
        "pydantic_core.ValidationError: 1 validation error for DeepSpeedZeroConfig stage Input should be 0, 1, 2 or 3"
    )
    file.write_text("something else\nhappened\n")
    assert reason_of(str(file)) == "happened"
    assert reason_of(str(tmp_path / "none")) == reason_of(None) == "no reason given"


@pytest.mark.parametrize(
    ("error", "is_tried_again"),
    [
        (RayTaskError("f", "...", ValueError("a bug, or a disk that is away")), True),
        (RayTaskError("f", "...", UserError("no such model")), False),
        (RayTaskError("f", "...", WorkerGroupError("...", {0: ValueError("three times in a row")})), False),
        (ActorDiedError(), True),
        (None, True),
    ],
)
def test_a_trial_is_tried_again_unless_that_would_find_the_same(
    error: Exception | None, is_tried_again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a trial that is lost with its process, and a mistake that is found, or workers that are started, N times N."""
    monkeypatch.setattr(TuneTrial, "handle_error", lambda *_: None)  # it would write files
    failed: Any = SimpleNamespace(trial_id="a", max_failures=2, run_metadata=SimpleNamespace(num_failures=2))
    with final_errors():
        TuneTrial.handle_error(failed, error)
        assert TuneTrial.should_recover(failed) is is_tried_again
        failed.run_metadata.num_failures = 3
        assert not TuneTrial.should_recover(failed)


@pytest.mark.parametrize("cause", [StorageError("no space"), OSError("AWS Error NETWORK_CONNECTION during PutObject")])
def test_a_trial_without_its_storage_ends_the_search_and_is_not_a_row_of_it(
    cause: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches an answer for good without the trials that a hiccup of the storage ended: a finished study is not redone."""
    point, error = {"train.lr": 1e-3}, RayTaskError("f", "...", cause)
    monkeypatch.setattr(TuneTrial, "handle_error", lambda *_: None)  # it would write files
    failed: Any = SimpleNamespace(trial_id="a", error_file=None, config={"point": point})
    config = config_with(storage=str(tmp_path), name="search", tune__space={"train.lr": {"grid": [1e-3]}})
    with final_errors():
        TuneTrial.handle_error(failed, error)
        Ends(config).on_trial_error(0, [], failed)
    assert Folder.read_json(trial_folder(config, point), "trial.json")["status"] == "running"
    with pytest.raises(StorageError, match=r"no space|NETWORK_CONNECTION"):
        Search(config, lambda trials: None)._end([point])
