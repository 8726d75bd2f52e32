"""`run_study`: the stages of a study, each re-used if it is already done."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from arc_ray.config import Config, value_name
from arc_ray.progress import Progress
from arc_ray.report import write_report
from arc_ray.rows.quality import describe_data
from arc_ray.runs.folder import finish, run_folder
from arc_ray.runs.starts import lineage
from arc_ray.study.comparing import EFFECT_KEYS, analyse, answer, finalists, split
from arc_ray.study.evaluating import evaluate_arms
from arc_ray.study.needs import Train, ensure, points_of
from arc_ray.tune.search import Search
from arc_ray.tune.space import Point, check_points, num_trials
from arc_ray.tune.trials import Trial, candidates, rank, write_search

NUM_STAGES = 5


def run_study(config: Config, progress: Progress, train: Train) -> dict[str, Any]:
    """Answer the config's question; interrupted and called again, it goes on. Returns the content of result.json.

    Raises UserError for what only the user can mend.
    """
    folder, numbers = run_folder(config), itertools.count(1)

    def stage(title: str) -> None:
        progress.stage(next(numbers), NUM_STAGES, title)

    ensure(config, "study", progress, train, stage)
    trials = points_of(config, "study")
    if not folder.exists("quality.json"):
        variants = check_points(config, trials)
        ancestors = {key: run for variant in variants for key, run in lineage(config, variant).items()}
        folder.write_json("quality.json", describe_data(with_all_data(variants), ancestors))
    seeds = len(config.study.seeds)
    stage(f"search: {num_trials(config, trials)} trials, then {seeds} fresh seeds of each arm's best")
    found = search_and_measure(config, trials, progress)
    analysis = analyse(config, found)
    folder.write_json("analysis.json", analysis)
    stage("evaluation")
    scores = evaluate_arms(config, found, progress)
    stage("report")
    result = {"answer": answer(analysis), "question": config.question, "confidence": config.study.confidence}
    result |= {f"effect/{e['arm']}/{e['metric']}/{key}": e[key] for e in analysis["effects"] for key in EFFECT_KEYS}
    result |= scores
    write_report([folder.uri])
    finish(folder, result)
    return result


def run_tune(config: Config, progress: Progress, train: Train) -> None:
    """Search as `tune` says, without seeds, arms or evaluation: trials.csv and best.yaml. Raises UserError."""
    ensure(config, "tune", progress, train)
    found = Search(config, _shown(config, progress)).run(points_of(config, "tune"))
    best = candidates(config, found)[0]
    numbers = {f"best/{key}": value for key, value in best.metrics.items() if isinstance(value, int | float)}
    finish(run_folder(config), {"best": best.name, "trials": len(found), **numbers})


def with_all_data(variants: Sequence[Config]) -> Config:
    """Return the first variant with the sources of every variant's mix in its own: what the study trains on at all."""
    data = variants[0].data
    mix: dict[str, int] = {}
    for variant in variants:
        mix |= {name: max(copies, mix.get(name, 0)) for name, copies in variant.data.mix.items()}
    return variants[0].model_copy(update={"data": data.model_copy(update={"mix": mix})})


def search_and_measure(config: Config, trials: Sequence[Point], progress: Progress) -> list[Trial]:
    """Search with early stopping, then train each arm's chosen setting to its end with fresh seeds."""
    search = Search(config, _shown(config, progress, in_study=True), in_study=True)
    chosen = finalists(config, search.run(trials))
    progress.note(f"chosen on one half of the validation tasks: {'; '.join(_settings(config, chosen))}")
    search.run_points(chosen, stop_early=False)
    return search.ended


def _shown(config: Config, progress: Progress, in_study: bool = False) -> Callable[[list[Trial]], None]:
    """Return what a search tells of its trials: it writes and shows their table."""

    def show(found: list[Trial]) -> None:
        write_search(run_folder(config), config, found, in_study)
        progress.table(*trial_table(found))

    return show


def _settings(config: Config, chosen: Sequence[Point]) -> list[str]:
    """Name each arm's chosen setting once."""
    return list(dict.fromkeys(f"{arm} {setting}" for arm, setting, _ in (split(config, point) for point in chosen)))


def trial_table(trials: Sequence[Trial]) -> tuple[list[str], list[list[str]]]:
    """Lay out the table of trials for a terminal: what was varied, how far it is, how good it is; best first."""
    keys = list(dict.fromkeys(key for trial in trials for key in trial.point))
    columns = [*(key.rsplit(".", 1)[-1] for key in keys), "status", "step", "loss", "solved", "cells"]
    shown = ("step", "eval/loss", "eval/solved", "eval/cell_accuracy")
    rows = []
    for trial in rank(trials):
        values = [trial.metrics.get(key) for key in shown]
        numbers = [
            "" if v is None else f"{v:.0f}" if key == "step" else f"{v:.3f}"
            for key, v in zip(shown, values, strict=True)
        ]
        rows.append([*(value_name(trial.point[key]) for key in keys), trial.status, *numbers])
    return columns, rows
