"""`run_study`: the stages of a study, each re-used if it is already done."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from arc_ray.config import Config, value_name, with_overrides
from arc_ray.config.mistakes import nearest
from arc_ray.config.searching import ACCURACIES
from arc_ray.config.section import BUILT_IN
from arc_ray.config.sources import AnySource, CountingSource, PluginSource, RearcSource
from arc_ray.datasets.blocks import GeneratedSource
from arc_ray.datasets.generate import ensure_datasets
from arc_ray.datasets.reading import is_generated, load_source
from arc_ray.datasets.requests import requests_of, task_ids_of
from arc_ray.errors import NotMadeYetError, UserError
from arc_ray.evaluate.evaluation import check_evaluation, run_evaluation
from arc_ray.progress import Progress
from arc_ray.report import write_report
from arc_ray.rows.guard import refuse_overlap
from arc_ray.runs.fetch import obtain_model
from arc_ray.runs.folder import claim, finish, is_finished, run_folder
from arc_ray.runs.starts import config_of_run, lineage, make_needed_runs, needed_runs
from arc_ray.scores.analysis import choosing_half
from arc_ray.storage import Folder
from arc_ray.study.comparing import analyse, answer, finalists, search_points, split
from arc_ray.study.evaluating import evaluate_arms, shares
from arc_ray.train.run import check_training, describe_data
from arc_ray.tune.search import run_search, search
from arc_ray.tune.space import Point, check_points, num_trials, points
from arc_ray.tune.trials import Trial, candidates, rank, write_search

Train = Callable[[Config], dict[str, Any]]
"""Trains a config's run to its end, showing its progress."""

NUM_STAGES = 5


def run_study(config: Config, progress: Progress, train: Train) -> dict[str, Any]:
    """Answer the config's question; interrupted and called again, it goes on. Returns the content of result.json.

    Raises UserError for what only the user can mend.
    """
    folder = run_folder(config)
    trials = search_points(config, points(config))
    variants = check_points(config, trials)
    if not is_finished(folder):
        check_validation(config, variants, in_study=True)
        check_inputs(config, variants)
    claim(folder, config, "study")
    if is_finished(folder):
        return folder.read_json("result.json")
    progress.stage(1, NUM_STAGES, "data")
    make_data(config, variants, progress)
    progress.stage(2, NUM_STAGES, "starting checkpoints")
    make_starts(config, variants, progress, train)
    if not folder.exists("quality.json"):
        ancestors = {key: run for variant in variants for key, run in lineage(config, variant).items()}
        folder.write_json("quality.json", describe_data(with_all_data(variants), ancestors))
    progress.stage(
        3,
        NUM_STAGES,
        f"search: {num_trials(config, trials)} trials, then {len(config.study.seeds)} fresh seeds of each arm's best",
    )
    found = search_and_measure(config, trials, progress)
    analysis = analyse(config, found)
    folder.write_json("analysis.json", analysis)
    progress.stage(4, NUM_STAGES, "evaluation")
    scores = evaluate_arms(config, found, progress)
    progress.stage(5, NUM_STAGES, "report")
    result = {"answer": answer(analysis), "question": config.question, "confidence": config.study.confidence}
    result |= {**_flat(analysis), **scores}
    write_report([folder.uri])
    finish(folder, result)
    return result


def run_tune(config: Config, progress: Progress, train: Train) -> list[Trial]:
    """Search as `tune` says, without seeds, arms or evaluation: trials.csv and best.yaml. Raises UserError."""
    folder = run_folder(config)
    trials = points(config)
    variants = check_points(config, trials)
    if not is_finished(folder):
        check_validation(config, variants)
        check_inputs(config, variants)
    claim(folder, config, "tune")
    make_data(config, variants, progress)
    make_starts(config, variants, progress, train)

    def show(found: list[Trial]) -> None:
        write_search(folder, config, found)
        progress.table(*trial_table(found))

    found = search(config, trials, show)
    best = candidates(config, found)[0]
    numbers = {f"best/{key}": value for key, value in best.metrics.items() if isinstance(value, int | float)}
    finish(folder, {"best": best.name, "trials": len(found), **numbers})
    return found


def check_inputs(config: Config, variants: Sequence[Config], trains: bool = True) -> None:
    """Read the files of tasks that are given, and find the models: before work that a mistake would throw away.

    Built-in models are put into the storage. `trains` is as in `sources_read`. Raises UserError.
    """
    check_sources(config, variants, trains)
    check_overlap(config, variants, trains)
    for base in bases(config, variants):
        if base in BUILT_IN:
            obtain_model(base, config.storage)
    # Most trials of a search differ in nothing that is looked at.
    looked_at = {
        repr((c.model, c.train.full, c.train.row_tokens, c.train.deepspeed)): (c, is_trained)
        for of_kind, is_trained in ((variants, trains), (_runs_needed(config, variants), True))
        for c in of_kind
    }
    for c, is_trained in looked_at.values():
        with suppress(NotMadeYetError):
            check_training(c, is_trained)


def check_sources(config: Config, variants: Sequence[Config], trains: bool = True) -> None:
    """Read the files of tasks that are given, and what is to be generated and evaluated, as far as no work is needed.

    `trains` is as in `sources_read`. Raises UserError.
    """
    storage = Folder.at(config.storage)
    if not trains:
        check_evaluation(config)
    sources = sources_read(config, variants, trains)
    requests_of(sources)
    for source in sources.values():
        if not isinstance(source, GeneratedSource):
            load_source(source, storage)


def bases(config: Config, variants: Sequence[Config]) -> list[str]:
    """List the models, other than runs, that these variants of a config and the runs they need start from."""
    named = {c.model.base for c in [*variants, *_runs_needed(config, variants)]}
    return sorted(base for base in named if base and not base.startswith("@"))


def check_validation(config: Config, variants: Sequence[Config], in_study: bool = False) -> None:
    """Check that a search has what it chooses settings by, and a study enough of it for its two halves. Raises UserError."""
    for data in {repr(variant.data): variant.data for variant in variants}.values():
        if not data.validation:
            raise UserError(
                "data.validation is empty: a search chooses settings by the tasks of a validation set; name a source there"
            )
        known = {f"{metric}{of}" for metric in ACCURACIES for of in ("", *(f"/{name}" for name in data.validation))}
        if config.tune.metric not in known:
            raise UserError(
                f"tune.metric {config.tune.metric}: validation gives {', '.join(sorted(known))}"
                f"{nearest(config.tune.metric, known)}"
            )
        if in_study:
            named = [name for name in data.validation if config.tune.metric.endswith(f"/{name}")] or data.validation
            outputs = [output for name in named for output in _outputs_of(name, data.sources[name], config.storage)]
            choosing_half(outputs, config.seed)


def _outputs_of(name: str, source: AnySource, storage: str) -> list[str]:
    """Name the outputs that a source asks, as validation does; those of examples still to be made by their number."""
    match source:
        case CountingSource():
            return [f"{name}/{i}/0" for i in range(source.examples)]
        case RearcSource() | PluginSource():
            number = source.examples // (source.shown + 1) if source.shown else 0
            return [f"{name}/{task_id}#{k}/0" for task_id in task_ids_of(source) for k in range(number)]
        case _:
            tasks = load_source(source, Folder.at(storage))
            return [f"{name}/{task.id}/{i}" for task in tasks for i in range(len(task.test))]


def check_overlap(config: Config, variants: Sequence[Config], trains: bool = True) -> None:
    """Hold what is trained by variants, and by the runs that they need, against what each of them evaluates.

    `trains` is as in `sources_read`. Raises UserError.
    """
    storage, read = Folder.at(config.storage), sources_read(config, variants, trains)
    loaded = {name: load_source(s, storage) for name, s in read.items() if not isinstance(s, GeneratedSource)}

    def check(checked: Config, trains: bool) -> None:
        sources = checked.data.sources
        tasks = {name: of_source for name, of_source in loaded.items() if sources.get(name) == read[name]}
        refuse_overlap(checked, lineage(config, checked, trains), tasks, trains)

    for run in _runs_needed(config, variants):
        check(run, trains=True)
    # Most trials of a search differ in nothing that is looked at.
    for variant in {repr((c.data, c.evaluate.sets, c.model.base, c.model.adapter)): c for c in variants}.values():
        check(variant, trains)


def _runs_needed(config: Config, variants: Sequence[Config]) -> list[Config]:
    return [config_of_run(config, name) for name in needed_runs(config, variants) if name in config.runs]


def sources_read(config: Config, variants: Sequence[Config], trains: bool = True) -> dict[str, AnySource]:
    """Return the sources that any variant, any run they need, and the evaluation read, by name.

    Unless it `trains` them, the variants are evaluated only: what they were trained on need not be there.
    """
    needed = _runs_needed(config, variants)
    trained = [*variants, *needed] if trains else needed
    names = {name for c in trained for name, copies in c.data.mix.items() if copies}
    names |= {name for c in trained for name in c.data.validation}
    names |= {name for c in [config, *variants, *needed] for name in c.evaluate.sets}
    return {name: config.data.sources[name] for name in sorted(names)}


def make_data(config: Config, variants: Sequence[Config], progress: Progress, trains: bool = True) -> None:
    """Generate whatever of `sources_read` is generated. Raises UserError if it holds what is evaluated."""
    sources, storage = sources_read(config, variants, trains), Folder.at(config.storage)
    is_new = any(isinstance(s, GeneratedSource) and not is_generated(s, storage) for s in sources.values())
    for name, manifest in ensure_datasets(
        sources,
        storage,
        lambda name, done, total, rate: progress.advance(f"{name}, examples", done, total),
    ).items():
        progress.note(f"{name}: {_describe(manifest)}")
    if is_new:
        check_overlap(config, variants, trains)


def with_all_data(variants: Sequence[Config]) -> Config:
    """Return the first variant with the sources of every variant's mix in its own: what the study trains on at all."""
    data = variants[0].data
    mix: dict[str, int] = {}
    for variant in variants:
        mix |= {name: max(copies, mix.get(name, 0)) for name, copies in variant.data.mix.items()}
    return variants[0].model_copy(update={"data": data.model_copy(update={"mix": mix})})


def make_starts(config: Config, variants: Sequence[Config], progress: Progress, train: Train) -> None:
    """Train the runs that the arms start from, and evaluate those that say on what."""

    def make(run: Config) -> None:
        progress.note(f"{run.name}: " + ("a small model from random weights" if run.model.scratch else "LoRA training"))
        train(run)

    make_needed_runs(config, variants, make)
    for name in needed_runs(config, variants):
        sets = config.runs.get(name, {}).get("evaluate.sets")
        if sets:
            evaluation = with_overrides(
                config_of_run(config, name), {"name": f"{name}/evaluate", "evaluate.checkpoint": f"@{name}"}
            )
            result = run_evaluation(
                evaluation, lambda what, done, total, name=name: progress.advance(f"{name}, {what}", done, total)
            )
            progress.note(f"{name}: " + shares(result))


def search_and_measure(config: Config, trials: Sequence[Point], progress: Progress) -> list[Trial]:
    """Search with early stopping, then train each arm's chosen setting to its end with fresh seeds."""
    folder = run_folder(config)

    def show(found: Sequence[Trial]) -> None:
        write_search(folder, config, found, in_study=True)
        progress.table(*trial_table(found))

    searched = search(config, trials, show, in_study=True)
    chosen = finalists(config, searched)
    progress.note(f"chosen on one half of the validation tasks: {'; '.join(_settings(config, chosen))}")
    return [*searched, *run_search(config, chosen, False, lambda found: show([*searched, *found]), in_study=True)]


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


def _describe(manifest: dict[str, Any]) -> str:
    totals = manifest.get("totals", manifest)
    return ", ".join(f"{key} {value}" for key, value in totals.items() if isinstance(value, int))[:160]


def _flat(analysis: dict[str, Any]) -> dict[str, Any]:
    return {
        f"effect/{e['arm']}/{e['metric']}/{key}": e[key]
        for e in analysis["effects"]
        for key in ("value", "low", "high", "num_seeds", "num_tasks", "shown")
    }
