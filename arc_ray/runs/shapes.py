"""What the JSON and YAML files of runs, searches, evaluations and datasets hold, as far as readers rely on it.

`Folder.read_json(name, shape)` names what is otherwise. More keys may be there; earlier versions lack what is NotRequired.
What one module alone writes and reads has its shape there.
"""

import base64
from typing import Annotated, Any, Literal, NotRequired

from pydantic import AfterValidator, BeforeValidator, Field
from typing_extensions import TypedDict  # pydantic takes no other before Python 3.12

LARGEST = 2**53
"""Integers up to here are the same to every reader of JSON."""

LARGEST_NUMBER = 1e300
"""What a number may be at most, so that it can be multiplied and written."""

Number = Annotated[float, Field(allow_inf_nan=False, ge=-LARGEST_NUMBER, le=LARGEST_NUMBER)]
Count = Annotated[int, Field(ge=0, le=LARGEST)]
Positive = Annotated[int, Field(ge=1, le=LARGEST)]
Whole = Annotated[int, Field(ge=-LARGEST, le=LARGEST)]
Scalar = Number | str | bool | None
Named = dict[str, Any]


def _is_grid(rows: list[list[int]]) -> list[list[int]]:
    if not 1 <= len(rows) <= 30 or not 1 <= len(rows[0]) <= 30 or len({len(row) for row in rows}) > 1:
        raise ValueError("a grid has 1 to 30 rows of 1 to 30 cells, all of the same length")
    return rows


def _has_step(record: dict[str, float]) -> dict[str, float]:
    step = record.get("step", -1)
    if not (float(step).is_integer() and 0 <= step <= LARGEST):
        raise ValueError("step is missing, or no number of a step")
    return record


def _has_numbers(metrics: Any) -> Any:
    for name, value in metrics.items() if isinstance(metrics, dict) else ():
        if isinstance(value, int | float) and not abs(value) <= LARGEST_NUMBER:
            raise ValueError(f"{name} is larger than any metric")
    return metrics


GridShape = Annotated[list[list[Annotated[int, Field(ge=0, le=9)]]], AfterValidator(_is_grid)]
DigestsShape = Annotated[str, AfterValidator(base64.b64decode)]
"""What `digest_tasks` returns."""
MetricsShape = Annotated[dict[str, Number], AfterValidator(_has_step)]
"""A line of metrics.jsonl."""
FilesShape = dict[str, list[str]]
"""files.json of an evaluation."""


class DataShape(TypedDict, total=False):
    sources: dict[str, Named]


class TuneShape(TypedDict, total=False):
    metric: str
    search: str
    num_trials: Count | None
    space: dict[str, Annotated[dict[str, Annotated[list[Any], Field(min_length=1)]], Field(min_length=1)]]


class StudyShape(TypedDict, total=False):
    compare: str
    arms: list[Any]
    seeds: list[Whole] | dict[str, Count]


class ConfigShape(TypedDict, total=False):
    """config.yaml of a run folder, as far as it is read without the tree: earlier versions had other keys."""

    name: str
    storage: str
    question: str | None
    seed: Whole
    start: str
    starts: dict[str, Named]
    runs: dict[str, Named] | None
    scaling: dict[str, Scalar | list[int]]
    model: Named
    train: Named
    data: DataShape
    tune: TuneShape
    study: StudyShape


class _ResultShape(TypedDict, total=False):
    steps: Count
    seconds: Number
    checkpoint: str | None
    seeds: list[Whole]


ResultShape = Annotated[_ResultShape, BeforeValidator(_has_numbers)]
"""result.json, of which most is flat metrics."""


class RunShape(TypedDict, total=False):
    command: str
    arguments: list[str]
    started: str
    python: str
    versions: dict[str, str | None]
    hardware: dict[str, Scalar]
    git_commit: str | None
    sets: dict[str, str]


class CheckpointShape(TypedDict):
    """arc_ray.json of a checkpoint; `digests` are of the files of its state."""

    prompt: NotRequired[dict[str, str]]
    base: NotRequired[str | None]
    base_fingerprint: NotRequired[str | None]
    frame: NotRequired[dict[str, str] | None]
    digests: NotRequired[dict[str, str]]


class CountsShape(TypedDict):
    views: Count
    dropped: Count
    epochs: Count
    views_per_source: dict[str, Count]


class PlanShape(TypedDict):
    """What plan.parquet keeps beside its columns."""

    row_tokens: Positive
    batch_rows: Positive
    num_steps: Count
    sources: list[str]
    counts: CountsShape
    data: NotRequired[dict[str, DigestsShape]]


class ValidationShape(TypedDict):
    """validation/step-<n>.json: a value a view in each list."""

    names: list[str]
    solved: list[bool | Number]
    cell_accuracy: NotRequired[list[Number]]
    loss: NotRequired[list[Number | None]]


def is_even(outcome: Any) -> Any:
    """Return an outcome whose lists, of an item a view or an output, are equally long. Raises ValueError."""
    lists = {"names", "tasks", "solved", "best", "cell_accuracy", "loss"} & outcome.keys()
    if len({len(outcome[key]) for key in lists}) > 1:
        raise ValueError(f"{', '.join(sorted(lists))} must be equally long")
    return outcome


OutcomeShape = Annotated[ValidationShape, AfterValidator(is_even)]


class OverridesShape(TypedDict, total=False):
    seed: Whole


class TrialShape(TypedDict):
    """trial.json."""

    overrides: OverridesShape
    status: Literal["waiting", "running", "done", "stopped", "failed"]
    error: NotRequired[str | None]
    is_mistake: NotRequired[bool]


class PairShape(TypedDict):
    input: GridShape
    output: GridShape | None


class AnswerShape(TypedDict):
    """An entry of answers.json."""

    set: str
    task: str
    attempts: list[GridShape]
    is_right: bool
    output: NotRequired[Count]
    shown: NotRequired[list[PairShape] | None]
    input: NotRequired[GridShape | None]
    truth: NotRequired[GridShape | None]
    greedy: NotRequired[GridShape | None]
    cell_accuracy: NotRequired[Number | None]
    ending: NotRequired[str | None]
    right_by: NotRequired[dict[str, bool] | None]


class TimingShape(TypedDict):
    """<file>.json beside a file of predictions or scores."""

    seconds: Number


class TunedShape(TypedDict):
    """An entry of tuning.json; of its seconds, those that the steps took."""

    set: str
    task: str
    status: str
    file: str
    tuning_seconds: NotRequired[Number]


class ArmShape(TypedDict):
    arm: Any
    setting: NotRequired[Named | None]
    value: NotRequired[Number | None]
    value_choosing: NotRequired[Number | None]
    seeds: NotRequired[list[Whole] | None]


class EffectShape(TypedDict):
    arm: Any
    metric: str
    value: Number
    low: Number
    high: Number
    shown: bool
    num_seeds: Count
    num_tasks: Count
    num_units: NotRequired[Count]
    sentence: str
    result: NotRequired[str]
    needed: NotRequired[str | None]
    warnings: NotRequired[list[str]]


class AnalysisShape(TypedDict):
    """analysis.json."""

    baseline: Any
    metric: str
    arms: list[ArmShape]
    effects: list[EffectShape]
    question: NotRequired[str | None]
    compare: NotRequired[str]
    confidence: NotRequired[Annotated[float, Field(gt=0, lt=1)] | None]
    loss_at_step_0: NotRequired[dict[str, Number | None] | None]
    steps_to_loss: NotRequired[dict[str, Number | None] | None]
    equal_tokens: NotRequired[dict[str, Number | None] | None]
    steps_to_loss_level: NotRequired[Number | None]
    equal_tokens_at: NotRequired[Number | None]


WasteShape = Annotated[dict[Literal["packed", "one_view_a_row", "padded_to_longest"], Number], Field(min_length=3)]


class QualityShape(TypedDict):
    """quality.json."""

    sources: dict[str, dict[str, Scalar | dict[str, Count]]]
    lengths: NotRequired[dict[str, dict[str, Number]]]
    waste: NotRequired[WasteShape | Annotated[Named, Field(max_length=0)] | None]
    met: NotRequired[dict[str, Annotated[dict[Literal["asked", "met"], Count], Field(min_length=2)]]]
    overlap: NotRequired[list[str]]


class DatasetShape(TypedDict):
    """dataset.json: what decides the examples, and what they were made with."""

    made_with: Named


class EntryShape(TypedDict):
    examples: Count
    indices: Count
    duplicates: Count
    attempts: Count
    rejected: dict[str, Count]
    timed_out: list[Any]


class ManifestShape(TypedDict):
    """manifest.json."""

    tasks: dict[str, EntryShape]
    rejected: NotRequired[dict[str, Count] | None]
    num_tasks: NotRequired[Count]
    examples: NotRequired[Count]
    attempts: NotRequired[Count]
    duplicates: NotRequired[Count]
    gave_up: NotRequired[Count]
    timed_out: NotRequired[list[Any] | None]
