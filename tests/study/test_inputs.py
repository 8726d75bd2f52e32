"""Mistakes in what a user gives are found before anything is made."""

import json
from pathlib import Path
from typing import Any

import pytest

from arc_ray.cli.console import Terminal
from arc_ray.config import Config, config_from, with_overrides
from arc_ray.errors import UserError
from arc_ray.progress import Progress
from arc_ray.runs.folder import claim, finish, run_folder
from arc_ray.runs.starts import config_of_run
from arc_ray.study.needs import Needs
from arc_ray.study.stages import ensure


def config(folder: Path, **changes: Any) -> Config:
    """Train on generated examples that are not there yet, and on a folder that is."""
    (folder / "tasks").mkdir(exist_ok=True)
    pair = {"input": [[1]], "output": [[2]]}
    (folder / "tasks" / "a.json").write_text(json.dumps({"train": [pair, pair], "test": [pair]}))
    sources = {"rearc": {"kind": "rearc"}, "mine": {"kind": "folder", "path": str(folder / "tasks")}}
    tree = {"storage": str(folder), "data": {"sources": sources, "mix": {"rearc": 1, "mine": 1}}}
    return config_from(
        {
            **tree,
            "model": {"base": "@tiny"},
            "runs": {"tiny": {"model.base": None, "model.scratch": {}, "train.full": True}},
            **changes,
        },
        {},
    )


def test_a_malformed_task_is_found_before_examples_are_generated(tmp_path: Path) -> None:
    """Catches a file that is first read when minutes of generating and training are over."""
    found = config(tmp_path)
    Needs(found, "train").check()
    (tmp_path / "tasks" / "a.json").write_text(
        json.dumps({"train": [{"input": [[1, 2], [3]], "output": [[1]]}], "test": []})
    )
    with pytest.raises(UserError, match=r"a\.json: task a, train pair 0, input: rows differ in length"):
        Needs(found, "train").check()
    assert not (tmp_path / "data").exists()


def test_a_path_that_is_no_model_is_found_before_examples_are_generated(tmp_path: Path) -> None:
    """Catches a mistyped model, of the config itself or of a run that it starts from."""
    for wrong in ({"model": {"base": "/nowhere"}}, {"runs": {"tiny": {"model.base": "/nowhere"}}}):
        found = config(tmp_path, **wrong)
        with pytest.raises(UserError, match=r"model\.base /nowhere: there is no such folder"):
            Needs(found, "train").check()


def test_runs_are_made_once_and_in_order_but_not_for_a_folder_of_another_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a base that is trained again by a second call, or before it is known that its run may not go on."""
    runs = {
        "tiny": {"model.base": None, "model.scratch": {}, "train.full": True},
        "second": {"model.base": "@tiny"},
    }
    asked = with_overrides(config(tmp_path, runs=runs, model={"base": "@second"}), {"data.mix": {"mine": 1}})
    made: list[str] = []

    def train(run: Config, progress: Progress, *_: object) -> dict[str, Any]:
        made.append(run.name)
        assert run == config_of_run(asked, run.name)
        finish(run_folder(run), {})
        return {}

    monkeypatch.setattr("arc_ray.study.stages.train_watched", train)
    for _ in range(2):
        ensure(Needs(asked, "train"), Terminal())
    assert made == ["tiny", "second"]
    run_folder(config_of_run(asked, "second")).delete()
    claim(run_folder(asked), asked, "train")
    with pytest.raises(UserError, match=r"made by another config \(differs in: train\.lr\)"):
        Needs(with_overrides(asked, {"train.lr": 1.0}), "train").check()
    assert made == ["tiny", "second"]


def test_an_evaluation_does_not_wait_for_what_others_train_on(tmp_path: Path) -> None:
    """Would catch 40,000 examples that are generated in order to answer tasks from a file with a model that is there."""
    asked = {"evaluate": {"sets": ["mine"]}, "data": config(tmp_path).model_dump()["data"] | {"mix": {"rearc": 1}}}
    found = config(tmp_path, **asked, model={"base": "some/model"}, runs={})
    assert set(Needs(found, "train").sources) == {"mine", "rearc"}
    assert set(Needs(found, "evaluate").sources) == {"mine"}
    found = config(tmp_path, **asked)  # the model is to be trained first
    assert set(Needs(found, "evaluate").sources) == {"mine", "rearc"}


@pytest.mark.parametrize(
    ("changes", "in_study", "message"),
    [
        ({"validation": []}, False, "data.validation is empty: a search chooses"),
        (
            {"metric": "eval/solved/hedl"},
            False,
            "tune.metric eval/solved/hedl: validation gives .*; did you mean eval/solved/held?",
        ),
        ({"metric": "eval/solved/rearc"}, False, "tune.metric eval/solved/rearc: validation gives"),
        ({"validation": ["mine"]}, False, None),
        ({"validation": ["mine"]}, True, "1 validation task: a comparison chooses on one half"),
        ({"validation": ["mine", "held"], "metric": "eval/solved/mine"}, True, "1 validation task"),
        ({"held": {"examples": 5}}, True, "1 validation task"),
        ({"held": {"examples": 6}}, True, "2 validation tasks: one half chooses"),
        ({"held": {"examples": 9}}, True, None),
        ({"validation": ["counted"]}, True, None),
    ],
)
def test_a_search_without_what_it_chooses_by_is_refused_before_work(
    tmp_path: Path, changes: dict[str, Any], in_study: bool, message: str | None
) -> None:
    """Catches a search that trains all its trials and then says that none has finished, or ranks them by a tie-break."""
    held = {"kind": "rearc", "first": 100, "shown": 2, "tasks": ["1c786137"], "examples": 6, **changes.get("held", {})}
    more = {"held": held, "counted": {"kind": "counting", "examples": 3}}
    overrides = {
        "data.validation": changes.get("validation", ["held"]),
        "tune.metric": changes.get("metric", "eval/solved"),
        **{f"data.sources.{name}": source for name, source in more.items()},
    }
    arms = {"starts": {"base": {}, "count": {}}, "study.seeds": [1]}
    needs = Needs(with_overrides(config(tmp_path), overrides | arms), "study" if in_study else "tune")
    if message is None:
        needs.check_validation()
    else:
        with pytest.raises(UserError, match=message):
            needs.check_validation()
