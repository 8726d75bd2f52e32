"""From trial folders to the analysis: what is measured, what is said beside it, and in which words."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arc_ray.config import Config, config_from
from arc_ray.runs import run_folder, write_metrics
from arc_ray.seeding import rng_for
from arc_ray.study.comparing import analyse, answer, finalists, search_points
from arc_ray.tune.space import Point, points, trial_config
from arc_ray.tune.trials import Trial, read_trial, write_status

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
    folder, epochs = run_folder(trial_config(config, point, "study")), point["train.epochs"]
    solved = (rng_for("comparing", point["seed"]).random(len(TASKS)) < skill).astype(float)
    records = [
        {
            **{"step": 10 * i, "eval/loss": 3 - skill * i, "eval/solved": float(solved.mean()) * i / epochs},
            **({"train/learned_tokens": 100.0 * i} if i else {}),
        }
        for i in range(epochs + 1)
    ]
    write_metrics(folder, records)
    outcomes = {"names": TASKS, "solved": solved.tolist(), "cell_accuracy": solved.tolist(), "loss": [1.0] * len(TASKS)}
    (folder / "validation").write_json(f"step-{10 * epochs:06d}.json", outcomes)
    write_status(folder, point, status)
    return read_trial(config, point)


def test_the_search_gives_every_arm_every_setting_and_the_best_ones_are_measured_with_fresh_seeds(tmp_path: Path):
    """Would catch an arm that is judged at the other's setting, and a failed trial that is chosen."""
    config = study(tmp_path)
    searched = search_points(config, points(config))
    assert [(p["train.lr"], p["train.epochs"], p["seed"]) for p in searched] == [
        *((0.1, 1, 0), (0.1, 4, 0), (0.2, 1, 0), (0.2, 4, 0))
    ]
    skills = {(0.1, 1): 0.8, (0.2, 1): 0.2, (0.1, 4): 0.3, (0.2, 4): 0.6}
    trials = [write_trial(config, p, skills[p["train.lr"], p["train.epochs"]]) for p in searched]
    chosen = finalists(config, trials)
    assert [(p["train.lr"], p["train.epochs"], p["seed"]) for p in chosen] == [
        *((0.1, 1, 1), (0.1, 1, 2), (0.1, 1, 3), (0.2, 4, 1), (0.2, 4, 2), (0.2, 4, 3))
    ]
    failed = [write_trial(config, searched[0], 0.8, "failed"), *trials[1:]]
    assert finalists(config, failed)[0]["train.lr"] == 0.2


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
