"""What a config needs before its work: looked at first, so that a mistake costs nothing, then made once and in order.

`train`, `tune`, `evaluate` and `study` call `check_inputs`, then `make_data` and `make_starts`.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from arc_ray.config import Config, with_overrides
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
from arc_ray.rows.guard import refuse_overlap
from arc_ray.runs.fetch import obtain_model
from arc_ray.runs.starts import config_of_run, lineage, make_needed_runs, needed_runs
from arc_ray.scores.analysis import choosing_half
from arc_ray.storage import Folder
from arc_ray.study.evaluating import shares
from arc_ray.train.run import check_training

Train = Callable[[Config], dict[str, Any]]
"""Trains a config's run to its end, showing its progress."""


def check_inputs(config: Config, variants: Sequence[Config], trains: bool = True) -> None:
    """Read the files of tasks that are given, and look at the models: before work that a mistake would throw away.

    Writes nothing to the storage. `trains` is as in `sources_read`. Raises UserError.
    """
    check_sources(config, variants, trains)
    check_overlap(config, variants, trains)
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
    """Put built-in models into the storage, and generate whatever of `sources_read` is generated.

    Raises UserError if that holds what is evaluated.
    """
    for base in bases(config, variants):
        if base in BUILT_IN:
            obtain_model(base, config.storage)
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


def _describe(manifest: dict[str, Any]) -> str:
    totals = manifest.get("totals", manifest)
    return ", ".join(f"{key} {value}" for key, value in totals.items() if isinstance(value, int))[:160]
