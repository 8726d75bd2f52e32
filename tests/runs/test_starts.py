"""Starting checkpoints: which runs must be there first, in which order, and made from what."""

from pathlib import Path
from typing import Any

import pytest

from arc_ray.config import Config, config_from, differing_keys, with_overrides
from arc_ray.errors import UserError
from arc_ray.runs.folder import checkpoint_name
from arc_ray.runs.starts import config_of_run, needed_runs, with_start
from arc_ray.storage import Folder

SOURCES = {name: {"kind": "counting"} for name in ("count", "held_out", "puzzles")}


def config(tmp_path: Path, **overrides: Any) -> Config:
    tree = {
        "name": "study",
        "storage": str(tmp_path),
        "question": "why?",
        "data": {"sources": SOURCES, "mix": {"puzzles": 2}, "validation": ["held_out"]},
        "starts": {"base": {}, "count": {"model.base": "@pretrained"}},
        "runs": {
            "pretrained": {"data.mix": {"count": 1, "puzzles": 0}, "model.base": "@raw", "train.lr": 1e-3},
            "raw": {"model.scratch": {"layers": 2}, "model.base": None, "train.full": True},
            "unused": {},
        },
        "tune": {"space": {"train.lr": {"grid": [1, 2]}}},
        "evaluate": {"sets": ["held_out"]},
        "model": {"base": "some/model"},
    }
    return config_from(tree, {key.replace("__", "."): value for key, value in overrides.items()})


def test_a_start_is_overrides_that_win(tmp_path: Path):
    """Would catch two arms that train the same model."""
    counted = with_start(config(tmp_path, start="count"))
    assert counted.model.base == "@pretrained"
    assert with_start(counted) == counted
    assert with_start(config(tmp_path)) == config(tmp_path)


def test_a_start_that_cannot_be_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"starts\.bad: .*base and scratch exclude each other"):
        with_start(config(tmp_path, **{"starts.bad": {"model.scratch": {}}, "start": "bad"}))


def test_the_config_of_a_run_is_the_configs_own_with_its_overrides(tmp_path: Path):
    run = config_of_run(config(tmp_path), "pretrained")
    assert (run.name, run.train.lr, run.model.base) == ("pretrained", 1e-3, "@raw")
    assert run.data.mix == {"count": 1}, "a source with 0 views does not make it another run"
    assert sorted(run.data.sources) == ["count", "held_out"], "nor does a source it does not use"


def test_two_studies_that_define_a_run_alike_share_it(tmp_path: Path):
    """Would catch a second study that is refused the folder of a pre-training, or trains it anew."""
    first = config(tmp_path)
    second = config(
        tmp_path,
        name="another",
        question="how?",
        start="count",
        tune__space={"train.epochs": {"grid": [1]}},
        study__arms=["base", "count", "x"],
        starts__x={},
        evaluate__sets=["puzzles"],
        **{"data.mix.puzzles": 5, "data.sources.more": {"kind": "counting"}, "runs.unused": {"train.lr": 1}},
    )
    a, b = (config_of_run(c, "pretrained") for c in (first, second))
    assert differing_keys(a.model_dump(mode="json"), b.model_dump(mode="json")) == []
    other = config_of_run(with_overrides(first, {"train.epochs": 3}), "pretrained")
    assert differing_keys(a.model_dump(mode="json"), other.model_dump(mode="json")) == ["train.epochs"]


def test_runs_come_after_those_they_need_and_unneeded_ones_not_at_all(tmp_path: Path):
    """Would catch a model that is wanted before it is trained."""
    base = config(tmp_path)
    counted = with_start(with_overrides(base, {"start": "count"}))
    assert [run.name for run in needed_runs(base, [counted, base, counted])] == ["raw", "pretrained"]
    assert [run.name for run in needed_runs(base, [base])] == []
    judged = with_overrides(base, {"evaluate.checkpoint": "@raw"})
    assert [run.name for run in needed_runs(judged, [judged])] == ["raw"]


def test_a_run_that_takes_over_a_reference_to_itself_is_refused(tmp_path: Path):
    """The natural first try: model.adapter: "@count" for all, and a run that is to make it."""
    base = config(tmp_path, model__adapter="@unused")
    with pytest.raises(UserError, match=r"runs\.unused starts from itself.* set model\.base and model\.adapter under"):
        needed_runs(base, [base])
    mended = config(tmp_path, model__adapter="@unused", **{"runs.unused": {"model.adapter": None}})
    assert [run.name for run in needed_runs(mended, [mended])] == ["unused"]


def test_runs_that_need_each_other_are_refused(tmp_path: Path):
    circle = config(tmp_path, **{"runs.raw": {"model.base": "@pretrained"}, "start": "count"})
    with pytest.raises(UserError, match="runs need each other: pretrained -> raw -> pretrained"):
        needed_runs(circle, [with_start(circle)])


def test_a_reference_to_nothing_is_refused_before_anything_is_trained(tmp_path: Path):
    lost = config(tmp_path, model__base="@typo")
    with pytest.raises(
        UserError, match=r"^model.base @typo: there is no run of this name under `runs` \(pretrained, raw, unused\)"
    ):
        needed_runs(lost, [lost])
    lost = config(tmp_path, **{"runs.raw": {"model.base": "@typo"}, "start": "count"})
    with pytest.raises(UserError, match=r"^runs.raw.model.base @typo"):
        needed_runs(lost, [with_start(lost)])


def test_a_run_that_is_only_in_storage_needs_no_making(tmp_path: Path):
    (Folder.at(str(tmp_path)) / "old" / checkpoint_name(3)).write_json("arc_ray.json", {})
    there = config(tmp_path, model__base="@old")
    assert [run.name for run in needed_runs(there, [there])] == []
