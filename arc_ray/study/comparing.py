"""From trials to the answer: which setting each arm is judged at, and what the arms differ by."""

import json
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from arc_ray.config import Config, value_name
from arc_ray.config.searching import trained_as
from arc_ray.errors import UserError
from arc_ray.report.frames import TOKENS
from arc_ray.runs.folder import read_metrics
from arc_ray.scores.analysis import Run, at_equal_tokens, choosing_half, compare, finding, gather, steps_to_loss
from arc_ray.scores.intervals import Effect, looks_levels
from arc_ray.tune.space import Point, trial_folder
from arc_ray.tune.trials import Trial, candidates, read_outcomes

TIE = "eval/cell_accuracy"
"""Decides ties of the metric that the arms are compared by, and is compared itself."""

ANSWERS = "answers"
"""Begins the names of metrics that are measured by what arms answer, in two attempts, as eval/ does those of validation."""

EFFECT_KEYS = ("value", "low", "high", "num_seeds", "num_tasks", "shown")
"""What a study's result.json says of each effect."""


def search_points(config: Config, found: Sequence[Point]) -> list[Point]:
    """Give every point of the search every arm that trains, with the config's own seed; arms of a point stand together.

    Raises UserError if the study would measure with that seed too: the chosen trial's luck would count.
    """
    if config.seed in config.study.all_seeds:
        raise UserError(f"study.seeds holds {config.seed}, the seed of the search; measuring needs fresh ones")
    return [
        {**point, config.study.compare: arm, "seed": config.seed} for point in found for arm in trained_arms(config)
    ]


def trainings(config: Config) -> dict[str, str]:
    """Name for each arm the one whose trainings it answers with; see `trained_as`."""
    return trained_as(config.study.compare, config.study.arms, config.starts)


def trained_arms(config: Config) -> list[Any]:
    """List the arms that have trainings of their own; the others differ from one of them in keys of `evaluate` alone."""
    return [arm for arm in config.study.arms if trainings(config)[value_name(arm)] == value_name(arm)]


def split(config: Config, point: Point) -> tuple[str, str, int]:
    """Take a point apart into arm, setting and seed; arm and setting as text."""
    setting = {key: value for key, value in point.items() if key not in (config.study.compare, "seed")}
    return value_name(point[config.study.compare]), json.dumps(setting), int(point["seed"])


def finalists(config: Config, trials: Sequence[Trial], seeds: Sequence[int]) -> list[Point]:
    """List the points that measure: each arm's best setting, with every one of these seeds.

    The seeds are fresh, so what is measured owes nothing to the luck of the trial that was chosen.
    """
    chosen = []
    for arm in trained_arms(config):
        own = [trial for trial in trials if split(config, trial.point)[0] == value_name(arm)]
        if ranked := candidates(config, own, in_study=True):
            chosen += [{**ranked[0].point, "seed": seed} for seed in seeds]
    return chosen


def analyse(config: Config, trials: Sequence[Trial]) -> dict[str, Any]:
    """Compare the arms by every metric and return what analysis.json holds. Raises UserError if an arm never finished."""
    study, metric = config.study, config.tune.metric
    baseline, metrics = value_name(study.arms[0]), list(dict.fromkeys([metric, TIE]))
    points = [trial.point for trial in trials if trial.status == "done" and trial.point["seed"] in study.all_seeds]
    read = [(split(config, point), read_outcomes(trial_folder(config, point), *metrics)) for point in points]
    outcomes = {name: gather(Run(*who, own[i], own[-1]) for who, own in read) for i, name in enumerate(metrics)}
    level = look_level(config, len(outcomes[metric].seeds))
    compared = {name: compare(found, baseline, level, config.seed) for name, found in outcomes.items()}
    return {
        "question": config.question,
        "compare": study.compare,
        "baseline": baseline,
        "metric": metric,
        "confidence": study.confidence,
        "arms": _arms(outcomes[metric], compared[metric][0], config),
        "effects": [
            effect_record(config, name, arm, effect, {arm: json.loads(text) for arm, text in settings.items()})
            for name, (settings, effects) in compared.items()
            for arm, effect in effects.items()
        ],
        **_curves(config, points, metric),
    }


def _curves(config: Config, points: Sequence[Point], metric: str) -> dict[str, Any]:
    """Compare the arms beside their ends: each number is an arm's mean over its trials.

    The loss before the first step. The steps until the lowest validation loss that every trial reached. The metric
    where each trial had learned as many tokens as the shortest learned in all: an arm at its best setting may have seen
    more than another, and this tells apart what it learned from how much it saw.
    """
    arms, columns = list[str](), list[list[list[float]]]()
    for point in points:
        # The record before the first step has no learned tokens.
        records = [{TOKENS: 0.0, **r} for r in read_metrics(trial_folder(config, point)) if "eval/loss" in r]
        if records:
            arms.append(split(config, point)[0])
            columns.append([[record[key] for record in records] for key in ("step", "eval/loss", TOKENS, metric)])
    if not arms:
        return {"loss_at_step_0": {}}
    steps, losses, tokens, values = zip(*columns, strict=True)
    level = max(map(min, losses))
    at, reached = at_equal_tokens({str(i): curve for i, curve in enumerate(zip(tokens, values, strict=True))})
    found = {
        "loss_at_step_0": _means(arms, [loss[0] for loss in losses]),
        "equal_tokens": _means(arms, reached.values()),
        "equal_tokens_at": at,
    }
    if to_level := _means(arms, [steps_to_loss(*curve, level) for curve in zip(steps, losses, strict=True)]):
        found |= {"steps_to_loss": to_level, "steps_to_loss_level": level}
    return found


def _means(arms: Sequence[str], values: Iterable[float | None]) -> dict[str, float]:
    """Average the values of each arm's trials, leaving out None."""
    by_arm: dict[str, list[float]] = {}
    for arm, value in zip(arms, values, strict=True):
        if value is not None:
            by_arm.setdefault(arm, []).append(value)
    return {arm: float(np.mean(found)) for arm, found in by_arm.items()}


def look_level(config: Config, num_seeds: int) -> float:
    """Return the level of the intervals after so many seeds, such that all looks together have `study.confidence`."""
    looks = config.study.looks
    return looks_levels(looks, config.study.confidence)[bisect_left(looks[:-1], num_seeds)]


def is_clear(config: Config, analysis: Mapping[str, Any]) -> bool:
    """Tell whether each effect that is asked for is shown, or as good as none."""
    asked = [effect for effect in analysis["effects"] if effect["metric"] == analysis["metric"]]
    none = config.study.indifference
    return all(effect["shown"] or -none <= effect["low"] <= effect["high"] <= none for effect in asked)


def answer(analysis: Mapping[str, Any]) -> str:
    """Say what was found: the sentences of the effects that the question is about, and of what they cost."""
    main = [e for e in analysis["effects"] if e["metric"] == analysis["metric"]]
    return " ".join(found["sentence"] for found in [*main, *analysis.get("costs", ())])


def effect_record(config: Config, metric: str, arm: str, effect: Effect, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what analysis.json says of an arm's effect on a metric; `settings` has each arm's."""
    baseline = value_name(config.study.arms[0])
    effect = replace(effect, confidence=config.study.confidence)  # of all looks together
    found = finding(effect, spoken_arm(arm, config), spoken_arm(baseline, config))
    if len(config.study.looks) > 1:
        paid = f"the interval pays for up to {len(config.study.looks)} looks, one after each round of seeds"
        found = replace(found, warnings=(*found.warnings, paid))
    kind, _, name = metric.partition("/")
    spoken = name.replace("_", " ") + (" in two attempts" if kind == ANSWERS else "")
    return {
        "arm": arm,
        "metric": metric,
        **{key: getattr(effect, key) for key in (*EFFECT_KEYS, "num_units", "unit")},
        "sentence": f"{spoken}, {found.sentence}",
        "result": f"{spoken}, {found.result}",
        "needed": found.needed,
        "warnings": list(found.warnings),
        "setting": settings[arm],
        "baseline_setting": settings[baseline],
    }


def _arms(outcomes: Any, settings: Mapping[str, str], config: Config) -> list[dict[str, Any]]:
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


def spoken_arm(arm: str, config: Config) -> str:
    """Name an arm in a sentence: a start by its name, a value of another key with that key, such as epochs 12."""
    key = config.study.compare.rsplit(".", 1)[-1]
    return arm if key == "start" else f"{key} {arm}"
