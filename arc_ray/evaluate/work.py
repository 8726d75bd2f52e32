"""What a model is asked to make, a file at a time, and what stands in the files."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from arc_ray.evaluate.choice import candidate_grids
from arc_ray.evaluate.questions import Prompt, make_batches
from arc_ray.rows.maker import ValidationSet
from arc_ray.storage import Folder
from arc_ray.tasks.task import Grid, Task

SCHEMA = pa.schema(
    [
        ("task", pa.string()),
        ("output", pa.int32()),
        ("view", pa.string()),
        ("text", pa.string()),
        ("grid", pa.string()),
        ("failure", pa.string()),
        ("log_probability", pa.float64()),
        ("passes", pa.int32()),
    ]
)
"""One prediction a row: what was written, and the grid read from it (JSON, turned back from the view) or why none was.

`passes` are the forward passes that it took part in. Where search found nothing, text and log_probability are null.
"""

SCORES = pa.schema([SCHEMA.field(name) for name in ("task", "output", "view", "grid", "log_probability")])
"""One candidate grid (JSON, not turned) under one view a row."""

Predictions = Mapping[tuple[str, int], list[dict[str, Any]]]
"""(task id, number of the test pair) -> rows of SCHEMA, or of SCORES."""


@dataclasses.dataclass(frozen=True, eq=False)
class Work:
    """A file to make: answers to prompts, scores of candidates after them, or answers to counting questions."""

    name: str
    prompts: tuple[Prompt, ...] = ()
    candidates: tuple[tuple[Grid, ...], ...] | None = None
    """Grids (not turned) to score after each prompt; None has the prompts answered."""
    questions: ValidationSet | None = None
    """Counting questions, one a view: exact greedy answers take one forward pass."""
    task: Task | None = None
    """What the model is tuned on before it answers, without the test pairs, which are in the prompts only."""
    set_name: str = ""
    """The set that the task is of."""

    @property
    def size(self) -> int:
        """Tokens of prompts and answers, to which both tuning and answering are about proportional."""
        return sum(len(prompt.ids) + prompt.limit for prompt in self.prompts)


def answering_works(name: str, prompts: Sequence[Prompt], batch_tokens: int, rows: int = 1) -> list[Work]:
    """Cut prompts into works, each a batch of at most `batch_tokens` tokens; `rows` answers are written to one at a time."""
    return [
        Work(f"{name}-{number:05d}.parquet", tuple(prompts[i] for i in batch))
        for number, batch in enumerate(make_batches(prompts, batch_tokens, rows))
    ]


def scoring_works(name: str, prompts: Sequence[Prompt], predictions: Predictions, batch_tokens: int) -> list[Work]:
    """Lay out every candidate of an output under every view of it; outputs without a candidate have nothing to score."""
    grids = {key: candidate_grids(rows) for key, rows in predictions.items()}
    asked = [prompt for prompt in prompts if grids.get(prompt.key)]
    works = answering_works(name, asked, batch_tokens)
    return [dataclasses.replace(work, candidates=tuple(grids[p.key] for p in work.prompts)) for work in works]


def by_output(rows: Iterable[dict[str, Any]]) -> Predictions:
    """Put the rows of each output together, in their order."""
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["task"], row["output"]), []).append(row)
    return found


def read_predictions(folder: Folder, names: Iterable[str]) -> Predictions:
    """Read all predictions, or scores, of these files."""
    return by_output(row for name in names for row in folder.read_parquet(name).to_pylist())
