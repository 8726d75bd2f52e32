"""The stages of a study, each re-used if it is already done; other commands have some of them.

Data and starting checkpoints are made by `ensure`, whichever command needs them.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from arc_ray.config import Config, value_name, with_overrides
from arc_ray.datasets.generate import ensure_datasets
from arc_ray.datasets.makers import GeneratedSource
from arc_ray.datasets.reading import is_generated
from arc_ray.errors import located
from arc_ray.evaluate.evaluation import run_evaluation
from arc_ray.progress import Progress, watched
from arc_ray.prompts.vocabulary import keep_cut
from arc_ray.report import write_report
from arc_ray.rows.plan import Plan, load_plan
from arc_ray.rows.quality import describe_data
from arc_ray.runs.folder import MetricsTail, as_made, claim, finish, is_finished, note_sets, run_folder
from arc_ray.runs.obtain import in_config, obtain, obtaining
from arc_ray.runs.owner import owned
from arc_ray.runs.starts import lineage
from arc_ray.study.answers import by_answers, compares_answers
from arc_ray.study.comparing import EFFECT_KEYS, analyse, answer, finalists, is_clear, split
from arc_ray.study.evaluating import evaluate_arms, shares
from arc_ray.study.needs import Needs
from arc_ray.train.run import run_training
from arc_ray.tune.space import num_trials
from arc_ray.tune.trials import Trial, candidates, rank, write_search

if TYPE_CHECKING:
    from arc_ray.tune.search import Search

NUM_STAGES = 5
LOOK_SECONDS = 1.0
STEP_METRICS = (
    ("loss", "train/loss", 3),
    ("tokens/s", "train/tokens_per_second", 0),
    ("solved", "eval/solved", 3),
    ("cells", "eval/cell_accuracy", 3),
)
"""What is shown of a training: name, metric and digits."""


def run_study(needs: Needs, progress: Progress) -> dict[str, Any]:
    """Answer the config's question; interrupted and called again, it goes on. Returns the content of result.json.

    Raises UserError for what only the user can mend.
    """
    config, folder, numbers = needs.config, run_folder(needs.config), itertools.count(1)

    def stage(title: str) -> None:
        progress.stage(next(numbers), NUM_STAGES, title)

    ensure(needs, progress, stage)
    search = make_search(needs, progress)
    if not folder.exists("quality.json"):
        ancestors = {key: run for variant in needs.variants for key, run in lineage(config, variant).items()}
        data = with_all_data(needs.variants)
        quality = describe_data(data, ancestors, plan=search.plan(data))
        note_sets(folder, {name: counts["set"] for name, counts in quality["sources"].items()})
        folder.write_json("quality.json", quality)
    trials, looks = num_trials(config, needs.points), config.study.looks
    seeds = f"{looks[0]} fresh seed{'' if looks[-1] == 1 else 's'}" + (f", up to {looks[-1]}," if looks[1:] else "")
    stage(f"search: {trials} trial{'' if trials == 1 else 's'}, then {seeds} of each arm's best")
    searched, by_answer = search.run(needs.points), compares_answers(config)
    analysis, scores = dict[str, Any](), dict[str, float]()
    for before, number in itertools.pairwise([0, *looks]):
        if before:
            progress.note(f"not clear after {before} seeds of each arm: more are added")
        train_chosen(search, searched, config.study.all_seeds[before:number], progress)
        analysis = analyse(config, search.ended)
        if by_answer:
            if not before:
                stage("evaluation")
            scores = evaluate_arms(config, search.ended, progress)
            analysis = by_answers(config, analysis, search.ended)
        folder.write_json("analysis.json", analysis)
        if is_clear(config, analysis):
            break
    if not by_answer:
        stage("evaluation")
        scores = evaluate_arms(config, search.ended, progress)
    stage("report")
    result = {"answer": answer(analysis), "question": config.question, "confidence": config.study.confidence}
    result |= {f"effect/{e['arm']}/{e['metric']}/{key}": e[key] for e in analysis["effects"] for key in EFFECT_KEYS}
    result |= {
        f"cost/{c['arm']}/passes/{key}": c[key] for c in analysis.get("costs", ()) for key in ("value", "low", "high")
    }
    result |= scores
    write_report([folder.uri])
    finish(folder, result)
    return result


def run_tune(needs: Needs, progress: Progress) -> dict[str, Any]:
    """Search as `tune` says, without seeds, arms or evaluation: trials.csv and best.yaml. Raises UserError."""
    ensure(needs, progress)
    found = make_search(needs, progress).run(needs.points)
    best = candidates(needs.config, found)[0]
    numbers = {f"best/{key}": value for key, value in best.metrics.items() if isinstance(value, int | float)}
    result = {"best": best.name, "trials": len(found), **numbers}
    finish(run_folder(needs.config), result)
    return result


def ensure(
    needs: Needs,
    progress: Progress,
    heading: Callable[[str], None] = lambda title: None,
    train: Callable[[Config], dict[str, Any]] = run_training,
) -> None:
    """Make what is not there yet of a command's needs: models, data, runs and their evaluations.

    A search's folder is claimed before data. `heading` is told which of the two parts begins. Raises UserError where
    what was generated holds what is evaluated.
    """
    heading("data")
    for note in obtaining(needs.names, needs.config.storage):
        progress.note(note)
    for name in needs.names:
        with located(in_config(name)):
            obtain(name, needs.config.storage)
    if needs.is_search:
        claim(run_folder(needs.config), needs.config, needs.command)
    _make_data(needs, progress)
    heading("starting checkpoints")
    for run in needs.runs:
        _keep_cut(run, progress)
        with owned(run_folder(run), needs.command, progress):
            if not is_finished(run_folder(run)):
                kind = "a small model from random weights" if run.model.scratch else "LoRA training"
                progress.note(f"{run.name}: {kind}")
                train_watched(run, progress, train)
            if run.evaluate.sets:
                _evaluate(run, progress)
    for variant in needs.variants:
        _keep_cut(variant, progress)


def _keep_cut(config: Config, progress: Progress) -> None:
    """Put the base of a config, cut, into the storage, where all workers find it. Raises UserError."""
    if place := keep_cut(config.model, config.storage):
        progress.note(f"{config.model.base}, without the tokens that model.vocabulary leaves out: {place.uri}")


def _make_data(needs: Needs, progress: Progress) -> None:
    generated = [source for source in needs.sources.values() if isinstance(source, GeneratedSource)]
    is_new = not all(is_generated(source, needs.storage) for source in generated)
    for name, manifest in ensure_datasets(needs.sources, needs.storage, progress).items():
        made, left_out = (sum(manifest[key] for key in keys) for keys in (["examples"], ["duplicates", "gave_up"]))
        progress.note(f"{name}: {made:,} examples of {manifest['num_tasks']} tasks, {left_out} others left out")
    if is_new:
        needs.check_overlap()


def _evaluate(run: Config, progress: Progress) -> None:
    evaluation = with_overrides(run, {"name": f"{run.name}/evaluate", "evaluate.checkpoint": f"@{run.name}"})
    result = run_evaluation(evaluation, lambda what, done, total: progress.advance(f"{run.name}, {what}", done, total))
    progress.note(f"{run.name}: " + shares(result))


def train_watched(config: Config, progress: Progress, train: Callable[[Config], dict[str, Any]]) -> dict[str, Any]:
    """Train a run and show its metrics as they appear in its folder."""
    with watched(steps_shown(config, progress), LOOK_SECONDS):
        return train(config)


def steps_shown(config: Config, progress: Progress) -> Callable[[], None]:
    """Return a function that shows how far a run is: workers may be anywhere, their metrics are in its folder."""
    folder = run_folder(config)
    metrics, plans, shown = MetricsTail(folder), list[Plan](), -1

    def look() -> None:
        nonlocal shown
        if not plans and folder.exists("plan.parquet"):
            plans.append(folder.read("plan.parquet", load_plan))
            if config.train.micro_rows == "auto" and config.scaling.on_gpu:
                rows = as_made(folder, config).train.rows_at_once
                progress.note(f"{config.name}: rows at once (train.micro_rows) {rows}")
        metrics.look()
        if plans and metrics.newest and metrics.newest["step"] != shown:
            shown, newest = metrics.newest["step"], metrics.newest
            said = (f"{name} {newest[key]:.{digits}f}" for name, key, digits in STEP_METRICS if key in newest)
            progress.advance(f"{folder.name}, steps", shown, plans[0].num_steps, " ".join(said))

    return look


def with_all_data(variants: Sequence[Config]) -> Config:
    """Return the first variant with the sources of every variant's mix in its own: what the study trains on at all."""
    data = variants[0].data
    mix: dict[str, int] = {}
    for variant in variants:
        mix |= {name: max(copies, mix.get(name, 0)) for name, copies in variant.data.mix.items()}
    return variants[0].model_copy(update={"data": data.model_copy(update={"mix": mix})})


def train_chosen(search: "Search", searched: Sequence[Trial], seeds: Sequence[int], progress: Progress) -> None:
    """Train each arm's chosen setting to its end with fresh seeds."""
    chosen = finalists(search.config, searched, seeds)
    settings = dict.fromkeys(" ".join(split(search.config, point)[:2]) for point in chosen)
    progress.note(f"chosen on one half of the validation tasks: {'; '.join(settings)}")
    search.run_points(chosen, stop_early=False)


def make_search(needs: Needs, progress: Progress) -> "Search":
    """Make the search of a command, which writes and shows the table of its trials whenever that is another one."""
    from arc_ray.tune.search import Search  # Ray Tune takes a second of a core, and a training does without

    config, in_study, shown = needs.config, needs.command == "study", None

    def show(found: list[Trial]) -> None:
        nonlocal shown
        if shown != (table := trial_table(found)):
            write_search(config, found, in_study)
            progress.table(*table)
            shown = table

    return Search(config, show, in_study)


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
