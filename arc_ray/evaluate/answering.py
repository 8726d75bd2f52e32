"""Answering on Ray Data: an actor pool of models writes predictions batch by batch, each batch a file of its own.

A batch whose file is there is not answered again, so a killed evaluation goes on, and selection can be redone without a
model.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch

from arc_ray.config import Config
from arc_ray.encoders import Encoder
from arc_ray.evaluate.questions import Prompt
from arc_ray.generation import generate_greedily
from arc_ray.model import LearnedLoss, load_for_inference, load_tokenizer
from arc_ray.storage import Folder
from arc_ray.tokens import frame_of
from arc_ray.train.validation import ValidationSet, validate

SCHEMA = pa.schema(
    [
        ("task", pa.string()),
        ("output", pa.int32()),
        ("view", pa.string()),
        ("text", pa.string()),
        ("grid", pa.string()),
        ("failure", pa.string()),
        ("log_probability", pa.float64()),
    ]
)
"""One prediction a row: what was written, and the grid read from it (JSON, turned back from the view) or why none was."""


@dataclasses.dataclass(frozen=True, eq=False)
class Work:
    """One file of predictions to make."""

    name: str
    task_ids: tuple[str, ...]
    prompts: tuple[Prompt, ...]


class Answerer:
    """A model that answers batches; Ray Data keeps one in each actor of the pool."""

    def __init__(self, config: Config, folder: Folder, encoder: Encoder) -> None:
        torch.set_num_threads(config.scaling.threads or max(1, (os.cpu_count() or 1) // config.evaluate.num_actors))
        self._folder, self._encoder = folder, encoder
        self._model = load_for_inference(config.model, config.storage, config.evaluate.checkpoint)
        if config.scaling.use_gpu:
            self._model = self._model.to("cuda")
        self._tokenizer = load_tokenizer(config.model, config.storage)
        end = self._tokenizer(frame_of(self._tokenizer).end, add_special_tokens=False)["input_ids"]
        self._end_ids = [end[0]]
        self._pad_id = self._tokenizer.pad_token_id or 0

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Answer the works of a batch: write a file of predictions each; return their names."""
        for reference in batch["work"]:
            work: Any = ray.get(reference)
            if isinstance(work, CountingWork):
                self._count(work)
            else:
                self._answer(work)
        return {"done": np.array([len(batch["work"])])}

    def _answer(self, work: "Work") -> None:
        answers = generate_greedily(
            self._model, [p.ids for p in work.prompts], [p.limit for p in work.prompts], self._end_ids, self._pad_id
        )
        rows = []
        for prompt, answer in zip(work.prompts, answers, strict=True):
            text = self._tokenizer.decode(answer.ids)
            read = self._encoder.parse(text) if answer.is_complete else "unfinished"
            is_grid = isinstance(read, np.ndarray)
            rows.append(
                {
                    "task": work.task_ids[prompt.task],
                    "output": prompt.output,
                    "view": prompt.augmentation.name,
                    "text": text,
                    "grid": json.dumps(prompt.augmentation.invert(read).tolist()) if is_grid else None,
                    "failure": None if is_grid else read,
                    "log_probability": answer.log_probability,
                }
            )
        self._folder.write_parquet(work.name, pa.Table.from_pylist(rows, SCHEMA))

    def _count(self, work: "CountingWork") -> None:
        engine = _Inference(LearnedLoss(self._model))
        outcome = validate(engine, work.questions, rows_at_once=4, rank=0, num_workers=1)
        right = dict(zip(outcome.names, outcome.solved.tolist(), strict=True))
        self._folder.write_json(work.name, right)


@dataclasses.dataclass(frozen=True, eq=False)
class CountingWork:
    """Counting questions to answer, one to a view: exact greedy answers take one forward pass."""

    name: str
    questions: ValidationSet


class _Inference:
    """Gives a plain model the few methods of a DeepSpeed engine that validation uses."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self.device = next(model.parameters()).device

    def __call__(self, **inputs: torch.Tensor) -> Any:
        return self._model(**inputs)

    def eval(self) -> None:
        self._model.eval()

    def train(self) -> None:
        """Stay in evaluation mode."""


def answer_all(
    config: Config,
    folder: Folder,
    encoder: Encoder,
    works: Sequence[Work | CountingWork],
    progress: Callable[[int, int], None],
) -> None:
    """Answer every work whose file is not there yet; `progress` gets (done, total)."""
    there = set(folder.names())
    missing = [work for work in works if work.name not in there]
    done = len(works) - len(missing)
    progress(done, len(works))
    if not missing:
        return
    dataset = ray.data.from_items(
        [{"work": ray.put(work)} for work in missing], override_num_blocks=len(missing)
    ).map_batches(
        Answerer,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(config.evaluate.num_actors, len(missing))),
        fn_constructor_args=(config, folder, encoder),
        num_cpus=config.scaling.cpus_per_worker,
        num_gpus=1 if config.scaling.use_gpu else None,
    )
    dataset.context.enable_progress_bars = False
    dataset.context.execution_options.preserve_order = True
    dataset.context.execution_no_progress_timeout_s = -1
    batches: Any = dataset.iter_batches(batch_size=1)
    for batch in batches:
        done += int(batch["done"].sum())
        progress(done, len(works))


def read_predictions(folder: Folder, works: Sequence[Work]) -> Mapping[tuple[str, int], list[dict[str, Any]]]:
    """Read all predictions of these works: (task, output) -> rows of SCHEMA."""
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for work in works:
        for row in folder.read_parquet(work.name).to_pylist():
            found.setdefault((row["task"], row["output"]), []).append(row)
    return found
