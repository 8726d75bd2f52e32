"""From trials to the answer: which setting each arm is judged at, and what the arms differ by."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from arc_ray.config import Config, value_name
from arc_ray.errors import UserError
from arc_ray.runs.folder import read_metrics, run_folder
from arc_ray.scores.analysis import (
    Comparison,
    Run,
    at_equal_tokens,
    choosing_half,
    compare,
    finding,
    gather,
    steps_to_loss,
)
from arc_ray.tune.space import Point, trial_config
from arc_ray.tune.trials import Trial, candidates, read_outcomes

TIE = "eval/cell_accuracy"
"""Decides ties of the metric that the arms are compared by, and is compared itself."""


TOLD = ("value", "low", "high", "num_seeds", "num_tasks", "num_units", "unit", "shown")
"""What analysis.json tells of an effect."""


def search_points(config: Config, found: Sequence[Point]) -> list[Point]:
    """Give every point of the search every arm, with the config's own seed; arms of a point stand together.

    Raises UserError if the study would measure with that seed too: the chosen trial's luck would count.
    """
    if config.seed in config.study.seeds:
        raise UserError(f"study.seeds holds {config.seed}, the seed of the search; measuring needs fresh ones")
    return [{**point, config.study.compare: arm, "seed": config.seed} for point in found for arm in config.study.arms]


def split(config: Config, point: Point) -> tuple[str, str, int]:
    """Take a point apart into arm, setting and seed; arm and setting as text."""
    setting = {key: value for key, value in point.items() if key not in (config.study.compare, "seed")}
    return value_name(point[config.study.compare]), json.dumps(setting), int(point["seed"])


def finalists(config: Config, trials: Sequence[Trial]) -> list[Point]:
    """List the points that measure: each arm's best setting, with every seed of the study.

    The seeds are fresh, so what is measured owes nothing to the luck of the trial that was chosen.
    """
    chosen = []
    for arm in config.study.arms:
        of_arm = [trial for trial in trials if split(config, trial.point)[0] == value_name(arm)]
        if ranked := candidates(config, of_arm, in_study=True):
            chosen += [{**ranked[0].point, "seed": seed} for seed in config.study.seeds]
    return chosen


def analyse(config: Config, trials: Sequence[Trial]) -> dict[str, Any]:
    """Compare the arms by every metric and return what analysis.json holds. Raises UserError if an arm never finished."""
    done = [trial for trial in trials if trial.status == "done" and trial.point["seed"] in config.study.seeds]
    effects, arms = [], []
    for metric in dict.fromkeys([config.tune.metric, TIE]):
        runs = []
        for trial in done:
            folder = run_folder(trial_config(config, trial.point, config.name))
            outcomes, ties = read_outcomes(folder, metric), read_outcomes(folder, TIE)
            runs.append(Run(*split(config, trial.point), outcomes=outcomes, ties=ties))
        outcomes = gather(runs)
        baseline = value_name(config.study.arms[0])
        comparisons = compare(outcomes, baseline, config.study.confidence, config.seed)
        effects += [_effect(metric, comparison, config) for comparison in comparisons]
        if metric == config.tune.metric:
            arms = _arms(outcomes, comparisons, config)
    return {
        "question": config.question,
        "compare": config.study.compare,
        "baseline": value_name(config.study.arms[0]),
        "metric": config.tune.metric,
        "confidence": config.study.confidence,
        "arms": arms,
        "effects": effects,
        "loss_at_step_0": _per_arm(config, done, lambda records: records[0].get("eval/loss")),
        **_steps_to_common_loss(config, done),
        **_at_equal_tokens(config, done),
    }


def answer(analysis: Mapping[str, Any]) -> str:
    """Say in one sentence what was found: the sentence of the effect that the question is about."""
    main = [e for e in analysis["effects"] if e["metric"] == analysis["metric"]]
    return " ".join(effect["sentence"] for effect in main)


def _effect(metric: str, comparison: Comparison, config: Config) -> dict[str, Any]:
    effect = comparison.effect
    found = finding(effect, _spoken(comparison.arm, config), _spoken(comparison.baseline, config))
    return {
        "arm": comparison.arm,
        "metric": metric,
        **{key: getattr(effect, key) for key in TOLD},
        "sentence": f"{metric.removeprefix('eval/').replace('_', ' ')}, {found.sentence}",
        "needed": found.needed,
        "warnings": list(found.warnings),
        "setting": json.loads(comparison.arm_setting),
        "baseline_setting": json.loads(comparison.baseline_setting),
    }


def _arms(outcomes: Any, comparisons: Sequence[Comparison], config: Config) -> list[dict[str, Any]]:
    settings = {comparisons[0].baseline: comparisons[0].baseline_setting}
    settings |= {comparison.arm: comparison.arm_setting for comparison in comparisons}
    chooses = choosing_half(outcomes.task_ids, config.seed)
    return [
        {
            "arm": arm,
            "setting": json.loads(setting),
            "value": float(outcomes.arms[arm][setting][0][:, ~chooses].mean()),
            "value_choosing": float(outcomes.arms[arm][setting][0][:, chooses].mean()),
            "seeds": list(outcomes.seeds),
        }
        for arm, setting in settings.items()
    ]


def _per_arm(config: Config, trials: Sequence[Trial], take: Any) -> dict[str, float]:
    """Average a number taken from each trial's validation records over the trials of an arm."""
    found: dict[str, list[float]] = {}
    for trial in trials:
        records = _validations(config, trial)
        value = take(records) if records else None
        if value is not None:
            found.setdefault(split(config, trial.point)[0], []).append(float(value))
    return {arm: float(np.mean(values)) for arm, values in found.items()}


def _steps_to_common_loss(config: Config, trials: Sequence[Trial]) -> dict[str, Any]:
    """Average over an arm's trials the steps until the lowest validation loss that every trial reached."""
    lowest = [min(r["eval/loss"] for r in records) for t in trials if (records := _validations(config, t))]
    level = max(lowest, default=0.0)
    steps = _per_arm(
        config, trials, lambda rs: steps_to_loss([r["step"] for r in rs], [r["eval/loss"] for r in rs], level)
    )
    return {"steps_to_loss": steps, "steps_to_loss_level": level} if steps else {}


def _at_equal_tokens(config: Config, trials: Sequence[Trial]) -> dict[str, Any]:
    """Average the main metric of an arm's trials where each has learned as many tokens as the shortest learned in all.

    An arm at its best setting may have seen more than another; this tells apart what it learned from how much it saw.
    """
    records = {trial.name: _validations(config, trial) for trial in trials}
    curves = {
        name: ([r.get("train/learned_tokens", 0.0) for r in of_trial], [r[config.tune.metric] for r in of_trial])
        for name, of_trial in records.items()
        if of_trial
    }
    if not curves:
        return {}
    tokens = min(seen[-1] for seen, _ in curves.values())
    values = at_equal_tokens(curves, tokens)
    found: dict[str, list[float]] = {}
    for trial in trials:
        if (value := values.get(trial.name)) is not None:
            found.setdefault(split(config, trial.point)[0], []).append(value)
    return {"equal_tokens": {arm: float(np.mean(of_arm)) for arm, of_arm in found.items()}, "equal_tokens_at": tokens}


def _validations(config: Config, trial: Trial) -> list[dict[str, Any]]:
    folder = run_folder(trial_config(config, trial.point, config.name))
    return [record for record in read_metrics(folder) if "eval/loss" in record]


def _spoken(arm: str, config: Config) -> str:
    """Name an arm in a sentence: a start by its name, a value of another key with that key, such as epochs 12."""
    key = config.study.compare.rsplit(".", 1)[-1]
    return arm if key == "start" else f"{key} {arm}"
