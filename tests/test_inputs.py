"""Mistakes in what a user gives are found before anything is made."""

import json
from pathlib import Path
from typing import Any

import pytest

from arc_ray.config import Config, config_from
from arc_ray.errors import UserError
from arc_ray.study.driver import check_inputs, sources_read


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
    check_inputs(found, [found])
    (tmp_path / "tasks" / "a.json").write_text(
        json.dumps({"train": [{"input": [[1, 2], [3]], "output": [[1]]}], "test": []})
    )
    with pytest.raises(UserError, match=r"a\.json: task a, train pair 0, input: rows differ in length"):
        check_inputs(found, [found])
    assert not (tmp_path / "data").exists()


def test_a_path_that_is_no_model_is_found_before_examples_are_generated(tmp_path: Path) -> None:
    """Catches a mistyped model, of the config itself or of a run that it starts from."""
    for wrong in ({"model": {"base": "/nowhere"}}, {"runs": {"tiny": {"model.base": "/nowhere"}}}):
        found = config(tmp_path, **wrong)
        with pytest.raises(UserError, match=r"model\.base /nowhere: there is no such folder"):
            check_inputs(found, [found])


def test_an_evaluation_does_not_wait_for_what_others_train_on(tmp_path: Path) -> None:
    """Would catch 40,000 examples that are generated in order to answer tasks from a file with a model that is there."""
    asked = {"evaluate": {"sets": ["mine"]}, "data": config(tmp_path).model_dump()["data"] | {"mix": {"rearc": 1}}}
    found = config(tmp_path, **asked, model={"base": "some/model"}, runs={})
    assert set(sources_read(found, [found])) == {"mine", "rearc"}
    assert set(sources_read(found, [found], trains=False)) == {"mine"}
    found = config(tmp_path, **asked)  # the model is to be trained first
    assert set(sources_read(found, [found], trains=False)) == {"mine", "rearc"}
