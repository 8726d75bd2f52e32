"""Evaluation: prompts, strategies, selection that is redone without a model, and runs that go on where they were cut."""

import dataclasses
import json
import re
import shutil
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import yaml
from builders import codec_of, merging_tokenizer, overfit, puzzle, tiny_tokenizer
from training import ends_well, kill_driver, running, wait_for

from arc_ray.cli.console import Terminal
from arc_ray.cluster.roles import NodeKind, Room
from arc_ray.config import Config, config_from, to_yaml, with_overrides
from arc_ray.config.model import ModelConfig, ScratchConfig
from arc_ray.decode import vllm
from arc_ray.errors import UserError
from arc_ray.evaluate import evaluation as driver
from arc_ray.evaluate import pool
from arc_ray.evaluate.answering import draws_for
from arc_ray.evaluate.pool import Hosts
from arc_ray.evaluate.predictions import Predictions, read_predictions
from arc_ray.evaluate.questions import Work, make_batches, make_prompts, rows_of
from arc_ray.models.build import build_model
from arc_ray.prompts.tokenizer import frame_of
from arc_ray.report import write_report
from arc_ray.rows.maker import write_rows
from arc_ray.runs.folder import run_folder
from arc_ray.runs.shapes import AnswerShape
from arc_ray.storage import Folder
from arc_ray.study.answers import by_answers
from arc_ray.study.evaluating import evaluate_arms
from arc_ray.tasks.task import Task, TaskTable, task_to_json
from arc_ray.tune.space import trial_folder
from arc_ray.tune.trials import Trial
from arc_ray.views.view import plain_views


def tasks() -> list[Task]:
    return [puzzle(f"p{i}", num_train=3, num_test=1 + (i == 2), most=4) for i in range(5)]


@cache
def trained(positions: Literal["sequence", "grid"] = "sequence") -> tuple[Any, Any]:
    """A model that knows the answers of some of the tasks, upright."""
    table = TaskTable.of(tasks())
    codec = codec_of(tiny_tokenizer(), positions=positions)
    views = codec.encode(table, plain_views(table, 2))
    scratch = ScratchConfig(hidden_size=48, layers=2, heads=2, intermediate_size=96)
    model = build_model(ModelConfig(scratch=scratch), "", 0, full=True, tokenizer=tiny_tokenizer())
    overfit(model, write_rows([[view] for view in views[:4]], 160, 0, codec.positions), steps=70)
    return model.eval(), tiny_tokenizer()


def folder_with_tasks(path: Path) -> str:
    path.mkdir(parents=True, exist_ok=True)
    for task in tasks():
        (path / f"{task.id}.json").write_text(json.dumps(task_to_json(task)))
    return str(path)


def config_at(tmp_path: Path, **overrides: Any) -> Config:
    if not (tmp_path / "base").exists():
        for part in trained():
            part.save_pretrained(tmp_path / "base")
    tree = {
        "name": "run",
        "storage": str(tmp_path / "runs"),
        "model": {"base": str(tmp_path / "base"), "dtype": "float32"},
        "data": {"sources": {"mine": {"kind": "folder", "path": folder_with_tasks(tmp_path / "tasks")}}},
        "prompt": {"format": "compact", "encoder": "compact"},
        "view": {"max_shown": 2},
        "evaluate": {"sets": ["mine"], "symmetries": 2, "batch_tokens": 1000},
        "scaling": {"threads": 1, "use_gpu": False},
    }
    return config_from(tree, {key.replace("__", "."): value for key, value in overrides.items()})


def evaluate(config: Config) -> dict[str, Any]:
    return driver.run_evaluation(config, lambda *_: None)


def rows(config: Config, kind: str = "predictions") -> list[dict[str, Any]]:
    folder = run_folder(config) / kind
    names = folder.read_json("files.json")["mine"]
    return [row for name in names for row in folder.read_parquet(name).to_pylist()]


def seconds(config: Config, kind: str) -> float:
    """What all files took together."""
    folder = run_folder(config) / kind
    return sum(folder.read_json(f"{name}.json")["seconds"] for name in folder.read_json("files.json")["mine"])


def test_a_filtered_kaggle_set_says_that_its_submission_has_gaps_and_fills_them_by_key(tmp_path: Path, here: list[str]):
    """Would catch a submission that the competition refuses without a word, and an evaluation repeated to fill it."""
    challenges = tmp_path / "challenges.json"
    challenges.write_text(json.dumps({task.id: task_to_json(task) for task in tasks()}))
    source = {"kind": "kaggle", "challenges": str(challenges), "tasks": ["p3", "p1"]}
    config = config_at(tmp_path, data__sources={"mine": source})
    with pytest.warns(UserWarning, match="lacks 3 of the 5 tasks of .*challenges.json.*evaluate.fill_submission=true"):
        evaluate(config)
    assert run_folder(config).read_json("submission.json").keys() == {"p1", "p3"}
    made = list(here)
    filled = config_at(tmp_path, data__sources={"mine": source}, evaluate__fill_submission=True)
    evaluate(filled)
    evaluate(filled)
    submission = run_folder(filled).read_json("submission.json")
    assert here == made, "nothing is answered again"
    assert {task_id: len(outputs) for task_id, outputs in submission.items()} == {t.id: len(t.test) for t in tasks()}
    assert submission["p2"] == [{"attempt_1": [[0]], "attempt_2": [[0]]}] * 2


# What is asked


def prompts_of(**overrides: Any) -> list[Any]:
    config = config_from({"view": {"max_shown": 2}}, {k.replace("__", "."): v for k, v in overrides.items()})
    return make_prompts(codec_of(tiny_tokenizer()), TaskTable.of(tasks()), config)


def test_copies_are_other_views_and_the_first_is_the_plain_one():
    """Would catch copies that are all alike, and greedy scores of a recoloured view."""
    plain, more = prompts_of(evaluate__symmetries=2), prompts_of(evaluate__symmetries=2, evaluate__copies=3)
    assert (len(plain), len(more)) == (12, 36)
    views = [p.view for p in more if p.key == ("p2", 1)]
    assert views[0] == "same"
    assert views[3] == "turn1"
    assert len(set(views)) == 6
    for prompt in plain:
        (twin,) = [p for p in more if (p.task, p.output, p.view) == (prompt.task, prompt.output, prompt.view)]
        assert twin.ids.tolist() == prompt.ids.tolist()
    for prompt in more:
        assert prompt.view.partition("#")[0] == prompt.augmentation.name


def test_a_copy_follows_from_names_not_from_the_set_it_is_in():
    """Would catch a draw that depends on a task's position: another limit would change every prediction."""
    config = config_from({"evaluate": {"copies": 2}}, {"seed": 3})
    codec = codec_of(tiny_tokenizer())
    all_of_them = make_prompts(codec, TaskTable.of(tasks()), config)
    alone = make_prompts(codec, TaskTable.of(tasks()[2:3]), config)
    assert [p.ids.tolist() for p in alone] == [p.ids.tolist() for p in all_of_them if p.task == "p2"]
    other = make_prompts(codec, TaskTable.of(tasks()[2:3]), config_from({"evaluate": {"copies": 2}}, {"seed": 4}))
    changed = [a.ids.tolist() != b.ids.tolist() for a, b in zip(alone, other, strict=True)]
    assert changed == ["#" in p.view for p in alone]


def test_batches_leave_room_for_every_answer_of_a_prompt():
    """Would catch memory planned for one answer where 16 are written."""
    prompts = prompts_of()
    for rows_each in (1, 4):
        batches = make_batches(prompts, 2000, rows_each)
        assert sorted(id(prompt) for batch in batches for prompt in batch) == sorted(map(id, prompts))
        for batch in batches:
            width = max(len(prompt.ids) for prompt in batch) + max(prompt.limit for prompt in batch)
            assert len(batch) == 1 or width * rows_each * len(batch) <= 2000
    search = config_from({"evaluate": {"decode": "search", "min_probability": 0.3}}, {}).evaluate
    assert rows_of(search) == 4


def test_a_sample_has_numbers_of_its_own():
    """Would catch two views or two samples that share their luck, and luck that depends on the number of samples."""
    prompts = prompts_of(evaluate__copies=2)
    drawn = {(p.output, p.view): draws_for(5, 0, p) for p in prompts if p.task == "p2"}
    firsts = [float(x) for of_view in drawn.values() for x in of_view[:, 0]]
    assert len(set(firsts)) == len(firsts) == 5 * 2 * 8 * 2
    prompt = next(p for p in prompts if p.task == "p2")
    assert (draws_for(2, 0, prompt) == draws_for(5, 0, prompt)[:2]).all()


# Runs


def test_greedy_evaluation_solves_what_was_learned(tmp_path: Path, here: list[str]):
    """Scores, votes, gallery, submission and files of a whole run; the second call does nothing."""
    config = config_at(tmp_path)
    result = evaluate(config)
    assert result["mine/greedy/per_output/right"] == 4
    assert result["mine/per_output/of"] == 6
    assert result["mine/pass_at_1"] <= result["mine/pass_at_2"] == result["mine/in_samples"]
    assert result["mine/vote_at_2"] == result["mine/per_output"]
    submission = run_folder(config).read_json("submission.json")
    assert [len(submission[task.id]) for task in tasks()] == [1, 1, 2, 1, 1]
    assert len(run_folder(config).read_json("answers.json")) == 6
    before = list(here)
    assert evaluate(config) == result
    assert here == before
    for row in rows(config):
        assert (row["grid"] is None) != (row["failure"] is None)
        assert row["log_probability"] < 0


def test_an_evaluation_that_may_ask_what_was_learned_says_so(tmp_path: Path, here: list[str]):
    """Would catch scores from memory that nobody who reads the result or the report can tell from skill."""
    leaking = {"evaluate__checkpoint": "@base", "evaluate__symmetries": 1}
    config = config_at(tmp_path, data__mix={"mine": 1}, storage=str(tmp_path), **leaking)
    (tmp_path / "base" / "config.yaml").write_text(to_yaml(config_from(config.model_dump(), {"evaluate": {}})))
    checkpoint = tmp_path / "base" / "checkpoint-000001"
    shutil.copytree(tmp_path / "base", checkpoint)
    (checkpoint / "arc_ray.json").write_text("null")
    with pytest.raises(UserError, match="mine of @base and mine: training task p0 is evaluation task p0"):
        evaluate(config)
    assert not run_folder(config).exists(), "a refusal leaves nothing that stands in the way of the mended config"
    result = evaluate(with_overrides(config, {"data.allow_overlap": True}))
    assert result["overlap"] == [
        f"mine of @base and mine: training task p{i} is evaluation task p{i}" for i in range(5)
    ]
    written = write_report([run_folder(config).uri])
    for page in ("report.html", "report.md"):
        assert "mine of @base and mine: training task p4" in Path(written[page]).read_text()


def test_a_checkpoint_that_learned_other_text_around_its_prompts_is_refused(tmp_path: Path, here: list[str]):
    """Would catch a chat template that changed between training and evaluation; a checkpoint without a frame goes on."""
    config = config_at(tmp_path, evaluate__checkpoint=str(tmp_path / "base"), evaluate__symmetries=1)
    about = {"base": None, "prompt": {"format": "compact", "encoder": "compact"}}
    frame = dataclasses.asdict(frame_of(tiny_tokenizer()))
    for kept, name in (({}, "older"), ({"frame": frame}, "same"), ({"frame": frame | {"end": "<end>"}}, "other")):
        (tmp_path / "base" / "arc_ray.json").write_text(json.dumps(about | kept))
        if name == "other":
            with pytest.raises(UserError, match=r"base learned prompts with '<end>' where .* now writes '<eos>'"):
                evaluate(with_overrides(config, {"name": name}))
        else:
            evaluate(with_overrides(config, {"name": name}))


def test_a_checkpoint_answers_at_the_positions_that_it_learned(tmp_path: Path, here: list[str]):
    """Would catch answers written at other positions than those of training, which are wrong for no visible reason; a
    checkpoint from before there was a choice learned the sequence."""
    for part in trained("grid"):
        part.save_pretrained(tmp_path / "base")
    about = {"base": None, "prompt": {"format": "compact", "encoder": "compact"}}
    grid, older = {**about, "prompt": {**about["prompt"], "positions": "grid"}}, about
    config = config_at(tmp_path, evaluate__checkpoint=str(tmp_path / "base"), evaluate__lookahead=4)
    in_grids = with_overrides(config, {"prompt.positions": "grid", "name": "grid"})
    (tmp_path / "base" / "arc_ray.json").write_text(json.dumps(grid))
    assert evaluate(in_grids)["mine/greedy/per_output/right"] == 4
    with pytest.raises(
        UserError, match=r"learned the prompt .*'grid'.*/arc_ray.json.*prompt\.positions to the checkpoint's"
    ):
        evaluate(config)
    (tmp_path / "base" / "arc_ray.json").write_text(json.dumps(older))
    with pytest.raises(UserError, match=r"learned the prompt .*'sequence'.* the config says .*'grid'"):
        evaluate(with_overrides(in_grids, {"name": "other"}))
    assert evaluate(config)["mine/greedy/per_output/right"] < 4


def test_tasks_that_changed_since_an_evaluation_began_are_refused_by_name(tmp_path: Path, here: list[str]):
    """Would catch answers to two versions of a task in one score."""
    config = config_at(tmp_path, evaluate__symmetries=1)
    first = evaluate(config)
    named = run_folder(config).read_json("run.json")["sets"]
    assert re.fullmatch(r"unknown, fingerprint [0-9a-f]{16}", named["mine"])
    assert first["mine/version"] == named["mine"]
    run_folder(config).delete("result.json")
    changed = tmp_path / "tasks" / "p1.json"
    before = changed.read_text()
    changed.write_text(json.dumps(task_to_json(puzzle("other"))))
    with pytest.raises(UserError, match=r"source mine has changed .* \(as many tasks; changed or new: p1\)"):
        evaluate(config)
    changed.write_text(before)
    assert evaluate(config) == first


def test_lookahead_changes_neither_answers_nor_the_run(tmp_path: Path, here: list[str]):
    plain, fast = config_at(tmp_path, evaluate__lookahead=0, name="a"), config_at(tmp_path, name="b")
    assert evaluate(plain).items() - {("run", "a")} == evaluate(fast).items() - {("run", "b")}
    assert [row["text"] for row in rows(plain)] == [row["text"] for row in rows(fast)]
    assert sum(row["passes"] for row in rows(fast)) < sum(row["passes"] for row in rows(plain))
    evaluate(config_at(tmp_path, name="b", evaluate__lookahead=3))  # says how fast, not what


def test_selection_is_redone_without_a_model(tmp_path: Path, here: list[str]):
    """Would catch a re-selection that needs the checkpoint, and one that leaves old scores behind."""
    config = config_at(tmp_path, evaluate__copies=2)
    first = evaluate(config)
    (tmp_path / "base").rename(tmp_path / "gone")
    made = list(here)
    again = driver.run_evaluation(config_without_model(config, "vote_with_log_probability"), lambda *_: None)
    assert again["selection"] == "vote_with_log_probability"
    assert here == made
    assert not driver.needs_model(config_without_model(config, "majority").evaluate, run_folder(config))
    back = driver.run_evaluation(config_without_model(config, "majority"), lambda *_: None)
    assert back == first
    with pytest.raises(UserError, match=r"differs in: evaluate\.copies"):
        driver.run_evaluation(config_at(tmp_path, evaluate__copies=3), lambda *_: None)


def test_intervals_have_the_level_that_is_asked_for_and_told(tmp_path: Path, here: list[str]):
    """Would catch 95 % intervals of scores and gains under a heading of 60 %; an older result that does not tell has 95 %."""
    config = config_at(tmp_path, evaluate__copies=2)
    wide = evaluate(config)
    folder = run_folder(config)
    folder.write_json("result.json", {key: value for key, value in wide.items() if key != "confidence"})
    assert "confidence" not in driver.run_evaluation(config, lambda *_: None), "nothing is to be done again"
    asked = config.model_copy(update={"study": config.study.model_copy(update={"confidence": 0.6})})
    narrow = driver.run_evaluation(asked, lambda *_: None)
    assert (wide["confidence"], narrow["confidence"]) == (0.95, 0.6)
    for key in (key.removesuffix("/low") for key in wide if key.endswith("/low")):
        assert narrow[key] == wide[key], key
        assert narrow[f"{key}/high"] - narrow[f"{key}/low"] < wide[f"{key}/high"] - wide[f"{key}/low"], key
    written = write_report([folder.uri])
    for name in ("report.html", "report.md"):
        text = Path(written[name]).read_text()
        assert "60 % interval" in text, name
        assert "95 % interval" not in text, name


def config_without_model(config: Config, selection: str) -> Config:
    return config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"selection": selection})})


def test_product_of_experts_scores_every_candidate_under_every_view(tmp_path: Path, here: list[str]):
    """The candidates of all views, each rescored: a view's own greedy answer must get the probability it was written with."""
    config = config_at(tmp_path, evaluate__copies=2)
    voted = evaluate(config)
    predicted, made = rows(config), list(here)
    result = evaluate(config_without_model(config, "product_of_experts"))
    assert all(name.startswith("scores/") for name in here[len(made) :])
    assert len(here) > len(made)
    scored = {(r["task"], r["output"], r["view"], r["grid"]): r["log_probability"] for r in rows(config, "scores")}
    for task in tasks():
        for output in range(len(task.test)):
            grids = {r["grid"] for r in predicted if (r["task"], r["output"]) == (task.id, output)} - {None}
            views = {r["view"] for r in predicted if (r["task"], r["output"]) == (task.id, output)}
            of_output = {key for key in scored if key[:2] == (task.id, output)}
            assert of_output == {(task.id, output, v, g) for v in views for g in grids}
    checked = 0
    for row in predicted:
        if row["grid"] is not None:
            own = scored[row["task"], row["output"], row["view"], row["grid"]]
            assert own == pytest.approx(row["log_probability"], abs=1e-3)
            checked += 1
    assert checked > 6
    for answer in run_folder(config).read_json("answers.json"):
        assert answer.keys() <= AnswerShape.__annotations__.keys(), "a report would read what nobody has checked"
        sums: dict[str, float] = {}
        for (task_id, output, _, grid), log in scored.items():
            if (task_id, output) == (answer["task"], answer["output"]):
                sums[grid] = sums.get(grid, 0.0) + log
        assert answer["attempts"] == [json.loads(g) for g in sorted(sums, key=lambda g: -sums[g])[:2]]
    assert result["mine/in_samples"] == voted["mine/in_samples"]


def read(config: Config) -> Predictions:
    folder = run_folder(config) / "predictions"
    return read_predictions(folder, folder.read_json("files.json")["mine"])


def taken_from(first: Config, **changes: Any) -> Config:
    """Evaluate with other keys of `evaluate` after `first`; and once more by itself, which must come to the same."""
    keys = {f"evaluate.{key}": value for key, value in changes.items()}
    beside, alone = (with_overrides(first, {**keys, "name": name}) for name in ("beside", "alone"))
    results = [driver.run_evaluation(c, lambda *_: None, others=o) for c, o in ((beside, [first]), (alone, ()))]
    for kind in ("predictions", "scores") if beside.evaluate.selection == "product_of_experts" else ("predictions",):
        keys_of = lambda row: (row["task"], row["output"], row["view"], str(row["grid"]), row.get("text") or "")  # noqa: E731
        assert sorted(map(keys_of, rows(beside, kind))) == sorted(map(keys_of, rows(alone, kind)))
    for result in results:
        result.pop("run")
    assert results[0] == pytest.approx(results[1])
    run_folder(alone).delete()
    return beside


@pytest.mark.parametrize(
    ("first", "changes", "anew"),
    [
        ({"symmetries": 4}, {"symmetries": 2}, set()),
        ({"symmetries": 2, "copies": 2}, {"copies": 1}, set()),
        ({"symmetries": 2}, {"symmetries": 4}, {"predictions"}),
        ({"symmetries": 2}, {"selection": "votes_and_mean_log_probability"}, {"scores"}),
        ({"symmetries": 4, "selection": "product_of_experts"}, {"symmetries": 2}, set()),
        ({"decode": "sample", "samples": 4}, {"samples": 2, "batch_tokens": 300}, set()),
        ({"decode": "sample", "samples": 2}, {"samples": 4}, {"predictions"}),
        ({"decode": "search", "min_probability": 0.1}, {"min_probability": 0.2}, {"predictions"}),
        ({}, {"constrain": True}, {"predictions"}),
    ],
)
def test_what_evaluations_of_one_checkpoint_have_in_common_is_made_once(
    tmp_path: Path, here: list[str], first: dict[str, Any], changes: dict[str, Any], anew: set[str]
):
    """Would catch an arm that answers again what another has answered, and one that takes over answers of another kind."""
    config = config_at(tmp_path, name="first", **{f"evaluate__{key}": value for key, value in first.items()})
    evaluate(config)
    beside = taken_from(config, **changes)
    files = {kind: (run_folder(beside) / kind).names() for kind in ("predictions", "scores")}
    taken = {"files.json", "mine-taken.parquet", "mine-taken.parquet.json"}
    assert {kind for kind, names in files.items() if {*names} - taken} == anew
    if config.evaluate.selection == beside.evaluate.selection and not anew:
        shares = [sum(row["seconds"] for rows in read(c).values() for row in rows) for c in (config, beside)]
        assert seconds(beside, "predictions") == pytest.approx(shares[1])
        assert 0 < shares[1] < shares[0], "what was taken over has cost its part"
    alike = "min_probability" not in changes and "constrain" not in changes
    assert ("mine-taken.parquet" in files["predictions"]) == (alike and changes.get("samples") != 4)


@pytest.mark.parametrize(
    ("axis", "first", "smaller"),
    [
        ("views", {"symmetries": 4, "copies": 2}, {4: {"copies": 1}, 2: {"copies": 1, "symmetries": 2}}),
        ("views", {"symmetries": 4, "selection": "votes_and_mean_log_probability"}, {2: {"symmetries": 2}}),
        ("samples", {"decode": "sample", "samples": 4}, {2: {"samples": 2}, 1: {"samples": 1}}),
        ("threshold", {"decode": "search", "min_probability": 0.02}, {0.3: {"min_probability": 0.3}}),
    ],
)
def test_curves_tell_what_a_smaller_evaluation_comes_to(
    tmp_path: Path, here: list[str], axis: str, first: dict[str, Any], smaller: dict[float, dict[str, Any]]
):
    """Would catch answers that a smaller evaluation would not have had, and attempts chosen by another rule than its own."""
    config = config_at(tmp_path, name="first", **{f"evaluate__{key}": value for key, value in first.items()})
    result = evaluate(config)
    curves = {c["x"]: c for c in run_folder(config).read_json("curves.json") if c["axis"] == axis}
    assert sum(curves[max(curves) if axis != "threshold" else 0.02]["solved"]) == result["mine/per_output/right"]
    for x, changes in smaller.items():
        fewer = with_overrides(config, {**{f"evaluate.{k}": v for k, v in changes.items()}, "name": f"fewer-{x}"})
        result = evaluate(fewer)
        assert sum(curves[x]["solved"]) == result["mine/per_output/right"]
        assert sum(curves[x]["best"]) == result["mine/in_samples/right"]
        assert len(curves[x]["tasks"]) == 6
        for kind in ("passes", "tokens"):
            known = sum(row[kind] for row in rows(fewer)) / 6 if axis != "threshold" else None
            assert curves[x][kind] == pytest.approx(known)
    if axis == "threshold":
        assert {curve["seconds"] for curve in curves.values()} == {None}
    else:
        spent = sum(seconds(config, kind) for kind in ("predictions", "scores")[: 1 + ("selection" in first)])
        assert curves[max(curves)]["seconds"] == pytest.approx(spent / 6)
        assert sorted(curve["seconds"] for curve in curves.values()) == [curves[x]["seconds"] for x in sorted(curves)]


def test_what_older_evaluations_did_not_count_is_unknown(tmp_path: Path, here: list[str]):
    """Would catch predictions of an earlier version that are refused, and a cost that is made up for them."""
    config = config_at(tmp_path, evaluate__symmetries=2)
    first, folder = evaluate(config), run_folder(config) / "predictions"
    for name in folder.read_json("files.json")["mine"]:
        folder.write_parquet(name, folder.read_parquet(name).drop_columns(["tokens"]))
        folder.delete(f"{name}.json")
    run_folder(config).delete("result.json")
    assert evaluate(config) == first
    for curve in run_folder(config).read_json("curves.json"):
        assert (curve["tokens"], curve["seconds"]) == (None, None)
        assert curve["passes"] > 0
    beside = with_overrides(config, {"name": "beside", "evaluate.symmetries": 1})
    driver.run_evaluation(beside, lambda *_: None, others=[config])
    assert run_folder(beside).read_json("curves.json") == []
    assert not (run_folder(beside) / "predictions").exists("mine-taken.parquet.json")


def test_sampling_and_search_keep_all_they_find(tmp_path: Path, here: list[str]):
    """Search has every answer above the threshold, most probable first; sampling has so many rows a view."""
    sampled = config_at(tmp_path, name="s", evaluate__decode="sample", evaluate__samples=4, evaluate__temperature=0.7)
    result = evaluate(sampled)
    assert len(rows(sampled)) == 4 * 2 * 6
    assert {key for key in result if "pass_at" in key and key.count("/") == 1} == {
        f"mine/pass_at_{n}" for n in (1, 2, 8)
    }
    assert not any("greedy" in key for key in result)
    again = config_at(
        tmp_path, name="t", evaluate__decode="sample", evaluate__samples=4, evaluate__temperature=0.7,
        evaluate__batch_tokens=300, evaluate__lookahead=0,
    )  # fmt: skip
    evaluate(again)
    assert len((run_folder(again) / "predictions").names()) > len((run_folder(sampled) / "predictions").names())
    key = lambda row: (row["task"], row["output"], row["view"], row["text"])  # noqa: E731
    assert sorted(map(key, rows(again))) == sorted(map(key, rows(sampled)))
    searched = config_at(tmp_path, name="u", evaluate__decode="search", evaluate__min_probability=0.2)
    result = evaluate(searched)
    assert result["mine/per_output/right"] >= 4
    for row in rows(searched):
        if row["text"] is None:
            assert row["failure"] == "none_above_min_probability"
        else:
            assert row["log_probability"] > np.log(0.2)
    assert any(row["text"] is None for row in rows(searched))


def test_constrained_answers_are_grids(tmp_path: Path, here: list[str]):
    config = config_at(tmp_path, evaluate__constrain=True)
    evaluate(config)
    assert {row["failure"] for row in rows(config)} <= {None, "unfinished"}
    free = config_at(tmp_path, name="free")
    evaluate(free)
    kept = {(r["task"], r["output"], r["view"]): r["text"] for r in rows(config)}
    for row in rows(free):
        if row["grid"] is not None:
            assert kept[row["task"], row["output"], row["view"]] == row["text"]


def test_a_tokenizer_that_merges_cells_is_told_which_encoders_can_be_constrained(
    tmp_path: Path, here: list[str], monkeypatch: pytest.MonkeyPatch
):
    """Would catch advice that does not help: only encoders that this tokenizer keeps apart are named."""
    monkeypatch.setattr(driver, "load_tokenizer", lambda *_: merging_tokenizer())
    with pytest.warns(UserWarning, match="cells have no tokens"), pytest.raises(UserError) as raised:
        evaluate(config_at(tmp_path, evaluate__constrain=True))
    assert str(raised.value).endswith("an encoder whose cells it keeps apart: separated, symbols")


def test_what_vllm_cannot_do_is_refused_before_any_work(
    tmp_path: Path, here: list[str], monkeypatch: pytest.MonkeyPatch
):
    """Would catch a search that answers greedily in silence, and a worker that is the first to miss the package."""
    with pytest.raises(UserError, match="vllm neither searches"):
        config_at(tmp_path, evaluate__backend="vllm", evaluate__decode="search")
    monkeypatch.setattr(vllm, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="the package vllm is not installed here"):
        evaluate(config_at(tmp_path, evaluate__backend="vllm"))
    assert not here


def test_several_sets_have_a_submission_each(tmp_path: Path, here: list[str]):
    """Would catch one set's tasks that overwrite another's of the same name."""
    config = config_at(tmp_path, evaluate__symmetries=1)
    sources = {"mine": config.data.sources["mine"].model_dump(), "few": config.data.sources["mine"].model_dump()}
    sources["few"]["limit"] = 2
    both = config_from(
        config.model_dump(mode="json") | {"data": {"sources": sources}}, {"evaluate.sets": ["few", "mine"]}
    )
    evaluate(both)
    assert len(run_folder(both).read_json("submission-few.json")) == 2
    assert len(run_folder(both).read_json("submission-mine.json")) == 5


def test_a_task_without_test_pairs_is_refused_by_name_before_any_work(tmp_path: Path, here: list[str]):
    config = config_at(tmp_path)
    (tmp_path / "tasks" / "bad.json").write_text(json.dumps(task_to_json(puzzle("bad", num_train=3, num_test=0))))
    with pytest.raises(UserError, match=r"mine: .*tasks: task bad has no test pair to answer"):
        evaluate(config)
    assert not here


def test_an_evaluation_has_a_report_with_its_gallery(tmp_path: Path, here: list[str]):
    """Would catch a report that knows the evaluations of studies only."""
    from arc_ray.report import load, write_report

    config = config_at(tmp_path)
    evaluate(config)
    page = Path(write_report([run_folder(config).uri])["report.html"]).read_text()
    report = load(run_folder(config).uri)
    assert len(report.answers) == 6
    assert set(report.scores.loc[report.scores["rule"] != "gain", "method"]) == {"greedy", "voting"}
    assert report.scores.loc[report.scores["rule"] == "gain", "question"].tolist() == ["voting", "voting/two_attempts"]
    assert "<svg" in page
    assert all(task.id in page for task in tasks())
    assert re.search(r"\d × \d+, not \d|cells wrong|nothing to read as a grid", page)


def test_answers_to_hidden_outputs_are_reported_as_answered(tmp_path: Path, here: list[str]):
    """Would catch a competition's finished evaluation that is headed "Nothing is evaluated yet"."""
    from arc_ray.report import write_report

    config = config_at(tmp_path)
    for file in (tmp_path / "tasks").glob("*.json"):
        task = json.loads(file.read_text())
        file.write_text(json.dumps({**task, "test": [{"input": pair["input"]} for pair in task["test"]]}))
    evaluate(config)
    written = write_report([run_folder(config).uri])
    for name in ("report.html", "report.md"):
        text = Path(written[name]).read_text()
        assert "nothing is scored" in text
        assert "Nothing is evaluated yet" not in text


# Through Ray


@pytest.mark.slow
def test_a_killed_evaluation_goes_on(tmp_path: Path):
    """kill -9 in the middle: finished files are kept to the byte, the rest is made, the result is that of one go."""
    config = config_at(tmp_path, evaluate__batch_tokens=64, evaluate__copies=2, evaluate__symmetries=4)
    path = tmp_path / "config.yaml"
    tree = config.model_dump(mode="json") | {"ray": {"object_store_mib": 100, "num_cpus": 2}}
    path.write_text(yaml.safe_dump(tree))
    folder = tmp_path / "runs" / "run" / "predictions"
    with running("evaluate", str(path)) as command:
        wait_for(lambda: len(list(folder.glob("mine-*.parquet"))) >= 5, command)
        kill_driver(command)
    kept = {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in folder.glob("mine-*.parquet")}
    assert 5 <= len(kept) < 48
    assert not (folder.parent / "result.json").exists()
    with running("evaluate", str(path)) as command:
        assert "constructor arguments" not in ends_well(command), "Ray warns of how its actors are started"
    assert len(list(folder.glob("mine-*.parquet"))) == 48
    for name, (when, content) in kept.items():
        assert ((folder / name).stat().st_mtime_ns, (folder / name).read_bytes()) == (when, content)
    assert json.loads((folder.parent / "result.json").read_text())["mine/greedy/per_output/right"] == 4


def test_replicas_take_their_share_of_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Would catch a share that placement counts with and the actors do not ask for: all but one would wait for a GPU."""
    asked: dict[str, Any] = {}

    def outcomes(hosts: Any, config: Config, worker: Any, arguments: Any, works: Any, number: int, gpus: float) -> Any:
        asked.update(number=number, gpus=gpus)
        return ((work, None) for work in works)

    monkeypatch.setattr(pool, "outcomes", outcomes)
    monkeypatch.setattr(pool, "reachable_room", lambda: Room({NodeKind(8, 2): 1}, 1))
    config = config_at(tmp_path, scaling__use_gpu=True, evaluate__gpus=0.25)
    works = [Work("a"), Work("b")]
    pool.answer_all(Hosts(), config, Folder.at(str(tmp_path)), None, works, lambda *_: None)  # pyright: ignore[reportArgumentType]
    assert asked == {"number": 8, "gpus": 0.25}


def test_arms_of_a_study_answer_once_with_the_same_models(tmp_path: Path, here: list[str]):
    """Would catch arms that answer again what another has answered, and answers that the comparison does not find."""
    arms = {
        "one": {"evaluate.symmetries": 1},
        "four": {},
        "product": {"evaluate.selection": "product_of_experts"},
        "slow": {"evaluate.lookahead": 0},
    }
    keys = {"start": "four", "starts": arms, "study__arms": [*arms], "study__seeds": [1, 2], "evaluate__symmetries": 4}
    config = config_at(tmp_path, **keys)
    trials = []
    for seed in config.study.all_seeds:
        folder = trial_folder(config, {"start": "one", "seed": seed})
        shutil.copytree(tmp_path / "base", (folder / "checkpoint-000001").local_path())
        (folder / "checkpoint-000001").write_json("arc_ray.json", None)
        trials.append(Trial(folder.name, {"start": "one", "seed": seed}, "done", None))
    evaluate_arms(config, trials, Terminal())
    made = [name.partition("/")[0] for name in here]
    answers = {arm: (run_folder(config) / "evaluate" / arm / "seed-1" / "predictions").names() for arm in arms}
    assert [arm for arm, names in answers.items() if "mine-taken.parquet" in names] == ["one", "product"]
    parts = [name for name in answers["four"] if name.endswith(".parquet")]
    assert made.count("predictions") == 2 * 2 * len(parts), "two arms and two seeds"
    analysis = by_answers(config, {"arms": [{"arm": "one", "setting": {}}], "effects": []}, trials)
    effects = {e["arm"]: e for e in analysis["effects"] if e["metric"] == "answers/solved"}
    assert effects["slow"]["value"] == effects["four"]["value"]
    costs = {cost["arm"]: cost["value"] for cost in analysis["costs"]}
    assert costs["slow"] > costs["four"] == costs["product"] > 2
