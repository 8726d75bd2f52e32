"""What is prepared for a run: shared where configs agree in what it depends on, and held against a run that goes on."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from builders import puzzle

from arc_ray.config import Config, config_from, with_overrides
from arc_ray.errors import UserError
from arc_ray.rows import prepare as module
from arc_ray.rows.plan import save_plan
from arc_ray.rows.prepare import Prepared, inputs_key, keep, plan_key, prepare
from arc_ray.storage import Folder
from arc_ray.tasks.task import task_to_json

OF_INPUTS = {
    "data.sources.mine.limit": 2,
    "data.validation": [],
    "evaluate.sets": ["held"],
    "model.base": "other",
    "prompt.format": "output_from_examples",
    "prompt.learn": "asked",
    "view.max_shown": 1,
    "view.symmetries": False,
    "train.row_tokens": 200,
}
OF_PLAN = {"data.mix": {"mine": 3}, "train.epochs": 3, "train.batch_rows": 4, "train.max_steps": 1, "seed": 5}
OF_NEITHER = {
    "train.lr": 0.1,
    "train.micro_rows": 1,
    "tune.metric": "eval/cell_accuracy",
    "name": "x",
}


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Train on a folder of tasks, validate on another."""
    for name in ("mine", "held"):
        (tmp_path / name).mkdir()
        for i in range(4):
            task = puzzle(f"{name}{i}")
            (tmp_path / name / f"{task.id}.json").write_text(json.dumps(task_to_json(task)))
    sources = {name: {"kind": "folder", "path": str(tmp_path / name)} for name in ("mine", "held")}
    tree: dict[str, Any] = {
        "storage": str(tmp_path),
        "data": {"sources": sources, "mix": {"mine": 2}, "validation": ["held"]},
        "prompt": {"format": "compact", "encoder": "compact", "learn": "all"},
        "model": {"scratch": {}},
        "train": {"full": True, "row_tokens": 256, "epochs": 2, "batch_rows": 2, "micro_rows": 2},
    }
    return config_from(tree, {})


def contents(prepared: Prepared) -> list[bytes]:
    """All that a run trains on and validates, as bytes."""
    made = [prepared.maker.make(range(prepared.plan.num_rows))]
    made += [prepared.validation.batch] if prepared.validation else []
    return [save_plan(prepared.plan), *(array.tobytes() for batch in made for array in batch.values())]


@pytest.mark.parametrize("key", [key for key in (*OF_INPUTS, *OF_PLAN, *OF_NEITHER) if key != "model.base"])
def test_configs_share_what_is_prepared_if_and_only_if_it_is_the_same(config: Config, key: str) -> None:
    """Would catch a trial that trains on another's rows, and a search that makes equal rows for each learning rate."""
    known: dict[str, Any] = {}
    first = prepare(config, known=known)
    changed = with_overrides(config, {key: (OF_INPUTS | OF_PLAN | OF_NEITHER)[key]})
    second = prepare(changed, known=known)
    assert contents(second) == contents(prepare(changed)), "what is shared is what would be made"
    assert (second is first) == (key in OF_NEITHER)
    assert (second.validation is first.validation) == (key not in OF_INPUTS)


def test_the_base_is_part_of_the_key_because_its_tokenizer_is(config: Config) -> None:
    """Would catch an arm that starts from another model and is given ids of the first one's vocabulary."""
    other = with_overrides(config, {"model.base": "other", "model.scratch": None, "train.full": False})
    assert inputs_key(other) != inputs_key(config)
    assert plan_key(other) != plan_key(config)


def test_a_search_makes_each_plan_once(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch tasks that are loaded, and codecs that are tried, once a trial."""
    made: list[str] = []
    for name in ("load_source", "make_codec", "plan_rows"):
        own = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, name=name, own=own: (made.append(name), own(*a))[1])
    known: dict[str, Any] = {}
    for lr in (0.1, 0.01, 0.001):
        for epochs in (1, 2):
            prepare(with_overrides(config, {"train.lr": lr, "train.epochs": epochs}), known=known)
    assert sorted(made) == ["load_source", "load_source", "make_codec", "plan_rows", "plan_rows"]


def test_data_that_changed_since_a_run_was_planned_is_refused_by_name(tmp_path: Path, config: Config) -> None:
    """Catches a resumed run that goes on with other cells than its plan was made for, or fails in a worker."""

    def write(name: str, color: int) -> None:
        pair = {"input": [[1, 2]], "output": [[color]]}
        text = json.dumps({"train": [pair, pair], "test": [pair]})
        (tmp_path / "mine" / f"{name}.json").write_text(text)

    for name in "abc":
        write(name, 3)
    run = Folder.at(str(tmp_path / "run"))
    plan = keep(prepare(config, run), run).plan
    named = run.read_json("run.json")["sets"]
    assert sorted(named) == ["held", "mine"]
    assert all(re.fullmatch(r"unknown, fingerprint [0-9a-f]{16}", name) for name in named.values())
    assert keep(prepare(config, run), run).plan.num_rows == plan.num_rows
    write("b", 4)
    with pytest.raises(
        UserError, match=r"run: the data of source mine has changed .* \(as many tasks; changed or new: b\)"
    ):
        keep(prepare(config, run), run)
    write("b", 3)
    write("d", 3)
    with pytest.raises(UserError, match=r"\(7 tasks then, 8 now; changed or new: d\)"):
        keep(prepare(config, run), run)
    (tmp_path / "mine" / "d.json").unlink()
    (tmp_path / "mine" / "c.json").unlink()
    with pytest.raises(UserError, match=r"\(7 tasks then, 6 now; changed or new: none"):
        keep(prepare(config, run), run)
    write("c", 3)
    run.write_bytes("plan.parquet", save_plan(dataclasses.replace(plan, data={})))
    keep(prepare(config, run), run)  # an older run's plan says nothing of its data
    frame = run.read_json("frame.json")
    run.write_json("frame.json", frame | {"begin": "Today is 23 Nov 2026"})
    with pytest.raises(UserError, match=r"run learned prompts with 'Today is 23 Nov 2026' where .* now writes '<bos>'"):
        keep(prepare(config, run), run)
    run.delete("frame.json")
    keep(prepare(config, run), run)  # an older run goes on, and knows its frame from then on
    assert run.read_json("frame.json") == frame
    run.write_bytes("frame.json", json.dumps(frame).encode())
    keep(prepare(config, run), run)
    assert run.read_bytes("frame.json") == json.dumps(frame).encode(), "what is there is written anew"
