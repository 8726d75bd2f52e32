"""What a command needs before its work: looked at first, so that a mistake costs nothing, then made once and in order.

The variants of a config are what a command works on: the trials of a search, else the config with its start.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from operator import attrgetter
from typing import Any, Literal

from arc_ray.config import Config, with_overrides
from arc_ray.config.searching import ACCURACIES
from arc_ray.config.section import BUILT_IN
from arc_ray.config.sources import AnySource, CountingSource, PluginSource, RearcSource
from arc_ray.datasets.blocks import GeneratedSource
from arc_ray.datasets.generate import ensure_datasets
from arc_ray.datasets.reading import is_generated, load_source
from arc_ray.datasets.requests import requests_of, task_ids_of
from arc_ray.errors import NotMadeYetError, UserError, nearest
from arc_ray.evaluate.evaluation import REDONE, check_evaluation, run_evaluation
from arc_ray.progress import Progress
from arc_ray.rows.guard import refuse_overlap
from arc_ray.runs.base import obtain_model
from arc_ray.runs.folder import claim, is_finished, refuse_other_config, run_folder
from arc_ray.runs.starts import lineage, needed_runs, with_start
from arc_ray.scores.analysis import choosing_half
from arc_ray.storage import Folder
from arc_ray.study.comparing import search_points
from arc_ray.study.evaluating import shares
from arc_ray.tasks.task import Task
from arc_ray.train.run import check_training
from arc_ray.tune.space import Point, check_points, points

Command = Literal["train", "evaluate", "tune", "study"]
SEARCHES = ("tune", "study")

Train = Callable[[Config], dict[str, Any]]
"""Trains a config's run to its end, showing its progress."""


def points_of(config: Config, command: Command) -> list[Point]:
    """List the points of the trials that a search starts with. Raises UserError."""
    return search_points(config, points(config)) if command == "study" else points(config)


def variants_of(config: Config, command: Command) -> list[Config]:
    """Return the variants of a config that a command works on. Raises UserError."""
    return check_points(config, points_of(config, command)) if command in SEARCHES else [with_start(config)]


class Needs:
    """The models, sources and runs that must be there before a command does its own work."""

    def __init__(self, config: Config, command: Command) -> None:
        """Find the variants and the runs that they refer to. Raises UserError."""
        self.config, self.command = config, command
        self.storage = Folder.at(config.storage)
        self.variants = variants_of(config, command)
        self.runs = needed_runs(config, self.variants)
        """Those under `runs`, in the order in which they are made."""

    @property
    def trains(self) -> bool:
        """Whether the variants are trained: what those were trained on that only answer need not be there."""
        return self.command != "evaluate"

    @property
    def models(self) -> list[str]:
        """The built-in models that variants and runs start from."""
        return sorted({c.model.base for c in [*self.variants, *self.runs] if c.model.base in BUILT_IN})

    @cached_property
    def sources(self) -> dict[str, AnySource]:
        """The sources that any variant, any run, and the evaluation read, by name."""
        trained = [*self.variants, *self.runs] if self.trains else self.runs
        names = {name for c in trained for name, copies in c.data.mix.items() if copies}
        names |= {name for c in trained for name in c.data.validation}
        names |= {name for c in [self.config, *self.variants, *self.runs] for name in c.evaluate.sets}
        return {name: self.config.data.sources[name] for name in sorted(names)}

    @cached_property
    def tasks(self) -> dict[str, list[Task]]:
        """The tasks of those sources that are given, not generated. Raises UserError for what is wrong with them."""
        given = {name: source for name, source in self.sources.items() if not isinstance(source, GeneratedSource)}
        return {name: load_source(source, self.storage) for name, source in given.items()}

    def check(self) -> None:
        """Find what is wrong with tasks, models and question before work that it would throw away; write nothing.

        Raises UserError.
        """
        if self.command in SEARCHES:
            self.check_validation()
        self.check_sources()
        self.check_overlap()
        keys = ("model", "train.full", "train.row_tokens", "train.deepspeed")
        for configs, trains in ((self.variants, self.trains), (self.runs, True)):
            for config in _distinct(configs, keys):
                with suppress(NotMadeYetError):
                    check_training(config, trains)

    def check_sources(self) -> None:
        """Read the tasks that are given, and look at what is to be generated and evaluated. Raises UserError."""
        if not self.trains:
            check_evaluation(self.config)
        requests_of(self.sources)
        _ = self.tasks

    def check_validation(self) -> None:
        """Check that a search has what it chooses settings by, and a study enough for its two halves. Raises UserError."""
        metric = self.config.tune.metric
        for variant in _distinct(self.variants, ("data",)):
            validation = variant.data.validation
            if not validation:
                raise UserError(
                    "data.validation is empty: a search chooses settings by the tasks of a validation set; name a source there"
                )
            known = {f"{accuracy}{of}" for accuracy in ACCURACIES for of in ("", *(f"/{name}" for name in validation))}
            if metric not in known:
                raise UserError(
                    f"tune.metric {metric}: validation gives {', '.join(sorted(known))}{nearest(metric, known)}"
                )
            if self.command == "study":
                chosen = [name for name in validation if metric.endswith(f"/{name}")] or validation
                choosing_half([output for name in chosen for output in self._outputs(name)], self.config.seed)

    def _outputs(self, name: str) -> Iterator[str]:
        """Name the outputs that validation asks of a source; those of examples still to be made by their number."""
        match source := self.sources[name]:
            case CountingSource():
                yield from (f"{name}/{i}/0" for i in range(source.examples))
            case RearcSource() | PluginSource():
                number = source.examples // (source.shown + 1) if source.shown else 0
                yield from (f"{name}/{task_id}#{k}/0" for task_id in task_ids_of(source) for k in range(number))
            case _:
                yield from (f"{name}/{task.id}/{i}" for task in self.tasks[name] for i in range(len(task.test)))

    def check_overlap(self) -> None:
        """Hold what variants and runs train on against what each of them evaluates. Raises UserError."""
        keys = ("data", "evaluate.sets", "model.base", "model.adapter")
        for configs, trains in ((self.runs, True), (_distinct(self.variants, keys), self.trains)):
            for config in configs:
                same = {n: t for n, t in self.tasks.items() if config.data.sources.get(n) == self.sources[n]}
                refuse_overlap(config, lineage(self.config, config, trains), same, trains)


def ensure(
    config: Config,
    command: Command,
    progress: Progress,
    train: Train,
    heading: Callable[[str], None] = lambda title: None,
) -> None:
    """Make what is not there yet of a command's needs: models, data, runs and their evaluations.

    A search's folder is claimed before. `heading` is told which of the two parts begins. Raises UserError where the
    command's folder is another config's, and where what was generated holds what is evaluated.
    """
    needs = Needs(config, command)
    if command in SEARCHES:
        claim(run_folder(config), config, command)
    else:
        [run] = needs.variants
        refuse_other_config(run_folder(run), run, tuple(REDONE) if command == "evaluate" else ())
    heading("data")
    _make_data(needs, progress)
    heading("starting checkpoints")
    for run in needs.runs:
        if not is_finished(run_folder(run)):
            kind = "a small model from random weights" if run.model.scratch else "LoRA training"
            progress.note(f"{run.name}: {kind}")
            train(run)
        if run.evaluate.sets:
            _evaluate(run, progress)


def _make_data(needs: Needs, progress: Progress) -> None:
    for model in needs.models:
        obtain_model(model, needs.config.storage)
    generated = [source for source in needs.sources.values() if isinstance(source, GeneratedSource)]
    is_new = not all(is_generated(source, needs.storage) for source in generated)
    for name, manifest in ensure_datasets(
        needs.sources,
        needs.storage,
        lambda name, done, total, rate: progress.advance(f"{name}, examples", done, total),
    ).items():
        totals = manifest.get("totals", manifest)
        counts = ", ".join(f"{key} {value}" for key, value in totals.items() if isinstance(value, int))
        progress.note(f"{name}: {counts[:160]}")
    if is_new:
        needs.check_overlap()


def _evaluate(run: Config, progress: Progress) -> None:
    evaluation = with_overrides(run, {"name": f"{run.name}/evaluate", "evaluate.checkpoint": f"@{run.name}"})
    result = run_evaluation(evaluation, lambda what, done, total: progress.advance(f"{run.name}, {what}", done, total))
    progress.note(f"{run.name}: " + shares(result))


def _distinct(configs: Iterable[Config], keys: Sequence[str]) -> list[Config]:
    """Return one config for all that agree in some keys: most trials of a search differ in nothing that is looked at."""
    return list({repr(attrgetter(*keys)(config)): config for config in configs}.values())
