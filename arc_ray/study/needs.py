"""What a command needs before its work, and what is wrong with that: looked at first, so that a mistake costs nothing.

The variants of a config are what a command works on: the trials of a search, else the config with its start.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from operator import attrgetter
from typing import Literal

from arc_ray.config import Config
from arc_ray.config.searching import ACCURACIES
from arc_ray.config.section import SETS, is_model_name
from arc_ray.config.sources import AnySource, CountingSource, GeneratorSource
from arc_ray.datasets.makers import GeneratedSource, task_ids_of
from arc_ray.datasets.reading import check_examples, checked_requests, is_generated, load_source
from arc_ray.errors import NotMadeYetError, UserError, located, nearest
from arc_ray.evaluate.audit import audited, fresh_sources, published
from arc_ray.evaluate.evaluation import REDONE, check_evaluation
from arc_ray.rows.guard import refuse_overlap
from arc_ray.runs.folder import is_finished, refuse_other_command, refuse_other_config, run_folder
from arc_ray.runs.starts import lineage, needed_runs, with_start
from arc_ray.scores.analysis import choosing_half
from arc_ray.storage import Folder
from arc_ray.study.answers import check_answering
from arc_ray.study.comparing import search_points
from arc_ray.tasks.task import Task
from arc_ray.train.run import check_training, is_alone
from arc_ray.tune.space import Point, check_points, points

Command = Literal["train", "evaluate", "audit", "tune", "study"]


class Needs:
    """The trials of a command, and the models, sources and runs that must be there before its own work."""

    def __init__(self, config: Config, command: Command, read: dict[str, list[Task]] | None = None) -> None:
        """Find the variants and the runs that they refer to; `read` are tasks that are known. Raises UserError."""
        self.config = config
        self.command: Command = command
        self.storage = Folder.at(config.storage)
        self._read = {} if read is None else read
        self.points: list[Point] = []
        """The trials that a search starts with."""
        if self.is_search:
            self.points = search_points(config, points(config)) if command == "study" else points(config)
        own = with_start(config)
        self.variants = check_points(config, self.points) if self.is_search else [own]
        if command == "audit":
            self.variants = [audited(own)]
        self.runs = needed_runs(config, self.variants)
        """Those under `runs`, in the order in which they are made."""

    def placed(self, config: Config) -> "Needs":
        """Return the needs of this config with places to run: tasks that were read are not read again."""
        return Needs(config, self.command, self._read)

    @property
    def is_search(self) -> bool:
        """Whether the command runs trials."""
        return self.command in ("tune", "study")

    @property
    def trains(self) -> bool:
        """Whether the variants are trained: what those were trained on that only answer need not be there."""
        return self.command not in ("evaluate", "audit")

    @property
    def trains_alone(self) -> bool:
        """Whether training is all that is done, by one worker on the CPU: that needs no Ray. Of settled configs."""
        trained = [*self.variants, *self.runs]
        return self.command == "train" and all(is_alone(c) and not c.scaling.on_gpu for c in trained)

    @property
    def trains_groups(self) -> bool:
        """Whether any training has several workers. Of settled configs."""
        return not all(map(is_alone, [*self.variants, *self.runs]))

    @property
    def uses_ray(self) -> bool:
        """Whether Ray is needed: for data that are still to be made, answers to evaluations, workers. Of settled configs."""
        generated = [source for source in self.sources.values() if isinstance(source, GeneratedSource)]
        asked = [run_folder(run) / "evaluate" for run in self.runs if run.evaluate.sets]
        is_made = all(is_generated(s, self.storage) for s in generated) and all(map(is_finished, asked))
        return not (self.trains_alone and is_made)

    @property
    def names(self) -> list[str]:
        """What has a name and is obtained by it: models that variants and runs start from, sets that sources read."""
        bases = [c.model.base for c in [*self.variants, *self.runs] if c.model.base and not c.model.scratch]
        versions = [getattr(source, "version", "") for source in self.sources.values()]
        return sorted({*filter(is_model_name, bases), *(version for version in versions if version in SETS)})

    @cached_property
    def sources(self) -> dict[str, AnySource]:
        """The sources that any variant, any run, and the evaluation read, by name."""
        trained = [*self.variants, *self.runs] if self.trains else self.runs
        names = {name for c in trained for name, copies in c.data.mix.items() if copies}
        names |= {name for c in trained for name in c.data.validation}
        names |= {name for c in [self.config, *self.variants, *self.runs] for name in c.evaluate.sets}
        found = {name: self.config.data.sources[name] for name in sorted(names)}
        if self.command == "audit" or (self.command == "study" and self.config.evaluate.audit.fresh):
            asking = audited(self.config)
            found |= fresh_sources(asking, published(asking))
        return found

    @property
    def tasks(self) -> dict[str, list[Task]]:
        """The tasks of those sources that are given, not generated. Raises UserError for what is wrong with them."""
        for name, source in self.sources.items():
            if name not in self._read and not isinstance(source, GeneratedSource):
                self._read[name] = load_source(source, self.storage)
        return self._read

    def check(self) -> None:
        """Find what is wrong with tasks, models and question before work that it would throw away; write nothing.

        Raises UserError.
        """
        self._check_folders()
        if self.is_search:
            self.check_validation()
        self.check_sources()
        self.check_overlap()
        keys = ("model", "prompt", "view", "train.full", "train.row_tokens", "train.deepspeed", "train.tracker")
        for configs, trains in ((self.variants, self.trains), (self.runs, True)):
            for config in _distinct(configs, keys):
                with suppress(NotMadeYetError):
                    check_training(config, trains)

    def _check_folders(self) -> None:
        """Refuse folders of other configs: the command's own, and those of runs that are still to be made."""
        own = self.config if self.is_search else self.variants[0]
        refuse_other_command(run_folder(own), self.command)
        refuse_other_config(run_folder(own), own, tuple(REDONE) if self.command == "evaluate" else ())
        for run in self.runs:
            if not is_finished(run_folder(run)):
                refuse_other_config(run_folder(run), run)

    def check_sources(self) -> None:
        """Read the tasks that are given, and look at what is to be generated and evaluated. Raises UserError."""
        if not self.trains:
            check_evaluation(self.config)
        for run in self.runs:
            if run.evaluate.sets:
                check_evaluation(run)
        checked_requests(self.sources, self.storage)
        for name, source in self.sources.items():
            if isinstance(source, GeneratedSource):
                with located(f"data.sources.{name}"):
                    check_examples(source)
        tasks = self.tasks
        if self.command == "study":
            check_answering(self.config, tasks)

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
                half = choosing_half([output for name in chosen for output in self._outputs(name)], self.config.seed)
                if (~half).sum() < 2:
                    raise UserError(
                        f"{len(half)} validation tasks: one half chooses and the other, of one, measures, which gives no"
                        f" interval; validate on at least three"
                    )

    def _outputs(self, name: str) -> Iterator[str]:
        """Name the outputs that validation asks of a source; those of examples still to be made by their number."""
        match source := self.sources[name]:
            case CountingSource():
                yield from (f"{name}/{i}/0" for i in range(source.examples))
            case GeneratorSource():
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


def _distinct(configs: Iterable[Config], keys: Sequence[str]) -> list[Config]:
    """Return one config for all that agree in some keys: most trials of a search differ in nothing that is looked at."""
    return list({repr(attrgetter(*keys)(config)): config for config in configs}.values())
