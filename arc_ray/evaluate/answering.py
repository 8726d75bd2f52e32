"""Answering: a pool of models writes predictions batch by batch, each batch a file of its own.

A batch whose file is there is not answered again, so a killed evaluation goes on, and selection can be redone without a
model.
"""

import json
import tempfile
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from arc_ray.cluster.preflight import num_replicas
from arc_ray.cluster.roles import reachable_room
from arc_ray.config import Config
from arc_ray.decode.grammar import GridGrammar
from arc_ray.decode.kernels import use_onednn
from arc_ray.decode.likelihood import score_answers
from arc_ray.decode.vllm import VllmWriter
from arc_ray.decode.writer import Answer, Writer
from arc_ray.evaluate.decoding import decode
from arc_ray.evaluate.pool import Pool
from arc_ray.evaluate.questions import Prompt
from arc_ray.evaluate.work import SCHEMA, SCORES, Work
from arc_ray.models.attention import place
from arc_ray.models.build import load_for_inference, merge_checkpoint
from arc_ray.models.loss import LearnedLoss
from arc_ray.prompts.codec import Codec
from arc_ray.prompts.encoders import Encoder
from arc_ray.prompts.tokenizer import load_tokenizer
from arc_ray.rows.maker import ValidationSet
from arc_ray.rows.prepare import codec_of
from arc_ray.runs.machine import usable_cores
from arc_ray.storage import Folder
from arc_ray.train.accuracy import validate


class Answerer:
    """A model that answers works; each actor of the pool holds one."""

    def __init__(self, config: Config, folder: Folder, encoder: Encoder, model: Any = None) -> None:
        """Answer with the checkpoint, which `load` loads, or with `model`, which is on its device already."""
        self._config, self._folder, self._encoder = config, folder, encoder
        self._given = model

    def load(self) -> None:
        """Load the checkpoint, as an actor of a pool does before its first work. Raises UserError."""
        if not self._uses_vllm:
            _ = self._model
        _ = self._codec

    def do(self, work: Work) -> None:
        """Do a work and write its file."""
        if work.questions is not None:
            self._folder.write_json(work.name, self.count(work.questions))
        else:
            self._folder.write_parquet(work.name, self.predict(work) if work.candidates is None else self.score(work))

    def predict(self, work: Work) -> pa.Table:
        """Answer the prompts of a work: a table of SCHEMA."""
        writer = self._vllm_writer if self._uses_vllm else self._writer
        rows = [
            {**_names(prompt), **self._read(prompt, answer)}
            for prompt, answers in zip(work.prompts, decode(self._config, writer, work.prompts), strict=True)
            for answer in answers or [None]
        ]
        return pa.Table.from_pylist(rows, SCHEMA)

    def score(self, work: Work) -> pa.Table:
        """Score the candidates of a work's prompts: a table of SCORES."""
        rows = []
        for prompt, grids in zip(work.prompts, work.candidates or (), strict=True):
            answers = [self._codec.answer_ids(prompt.augmentation.apply(grid)) for grid in grids]
            scores = score_answers(self._writer, prompt.ids, answers)
            rows += [
                {**_names(prompt), "grid": json.dumps(grid.tolist()), "log_probability": float(score)}
                for grid, score in zip(grids, scores, strict=True)
            ]
        return pa.Table.from_pylist(rows, SCORES)

    def count(self, questions: ValidationSet) -> dict[str, bool]:
        """Answer counting questions: name of the question -> whether the answer is right."""
        engine = _Inference(LearnedLoss(self._model))
        outcome = validate(engine, questions, rows_at_once=4, rank=0, num_workers=1)
        return dict(zip(outcome.names, outcome.solved.tolist(), strict=True))

    @property
    def _uses_vllm(self) -> bool:
        return self._config.evaluate.backend == "vllm" and self._given is None

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self._config.model, self._config.storage)

    @cached_property
    def _codec(self) -> Codec:
        return codec_of(self._config, self._tokenizer)

    @cached_property
    def _model(self) -> Any:
        return load_on_device(self._config) if self._given is None else self._given

    @cached_property
    def _writer(self) -> Writer:
        grammar = GridGrammar(self._codec, self._codec.end_id) if self._config.evaluate.constrain else None
        return Writer(self._model, [self._codec.end_id], self._tokenizer.pad_token_id or 0, grammar)

    @cached_property
    def _vllm_writer(self) -> VllmWriter:
        config = self._config
        with tempfile.TemporaryDirectory(prefix="arc_ray-") as folder:
            merge_checkpoint(config.model, config.storage, config.evaluate.checkpoint, Path(folder))
            return VllmWriter(folder, config.model.dtype, self._codec.end_id)

    def _read(self, prompt: Prompt, answer: Answer | None) -> dict[str, Any]:
        if answer is None:
            return {"failure": "none_above_min_probability"}
        text = self._tokenizer.decode(answer.ids)
        read = self._encoder.parse(text) if answer.is_complete else "unfinished"
        is_grid = isinstance(read, np.ndarray)
        return {
            "text": text,
            "grid": json.dumps(prompt.augmentation.invert(read).tolist()) if is_grid else None,
            "failure": None if is_grid else read,
            "log_probability": answer.log_probability,
            "passes": answer.passes,
        }


def load_on_device(config: Config) -> Any:
    """Load the checkpoint of `evaluate` for answering, with this process's share of the machine's threads or a GPU."""
    torch.set_num_threads(config.scaling.threads or max(1, usable_cores() // (config.evaluate.num_actors or 1)))
    model = load_for_inference(config.model, config.storage, config.evaluate.checkpoint)
    return use_onednn(place(model, config.scaling.on_gpu))


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
    works: Sequence[Work],
    progress: Callable[[int, int], None],
) -> None:
    """Do every work whose file is not there yet; `progress` gets (done, total). Raises UserError if a worker met one."""
    there = set(folder.names())
    missing = [work for work in works if work.name not in there]
    done = len(works) - len(missing)
    progress(done, len(works))
    if not missing:
        return
    replicas = num_replicas(config, reachable_room())
    pool = Pool(config, Answerer, (config, folder, encoder), replicas, gpus=config.evaluate.gpus)
    for _, outcome in pool.run(missing):
        if isinstance(outcome, Exception):
            raise outcome
        done += 1
        progress(done, len(works))


def _names(prompt: Prompt) -> dict[str, Any]:
    return {"task": prompt.task, "output": prompt.output, "view": prompt.view}
