"""Answering: a pool of models writes predictions batch by batch, each batch a file of its own.

A batch whose file is there is not answered again, so a killed evaluation goes on, and selection can be redone without a
model.
"""

import json
import tempfile
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from arc_ray.config import Config
from arc_ray.decode.grammar import GridGrammar
from arc_ray.decode.kernels import use_onednn
from arc_ray.decode.likelihood import find_answers, score_answers
from arc_ray.decode.vllm import VllmWriter
from arc_ray.decode.writer import Answer, Writer, generate_greedily, generate_samples
from arc_ray.evaluate.predictions import SCHEMA, SCORES, timing_of
from arc_ray.evaluate.questions import Prompt, Work
from arc_ray.models.attention import attends_to_all, place
from arc_ray.models.build import load_for_inference, served
from arc_ray.models.loss import LearnedLoss, validate
from arc_ray.models.weights import DTYPES, most_tokens
from arc_ray.prompts.codec import Codec
from arc_ray.rows.maker import ValidationSet
from arc_ray.runs.machine import usable_cores
from arc_ray.seeding import digest64, rng_for
from arc_ray.storage import Folder
from arc_ray.tasks.task import MAX_SIDE


class Answerer:
    """A model that answers works; each actor of the pool holds one."""

    def __init__(self, config: Config, folder: Folder, codec: Codec, model: Any = None) -> None:
        """Answer with the checkpoint, which `load` loads, or with `model`, which is on its device already."""
        self._config, self._folder, self._codec, self._given = config, folder, codec, model
        self._uses_vllm = config.evaluate.backend == "vllm" and model is None

    def load(self) -> None:
        """Take this process's share of threads and load the checkpoint, as an actor of a pool does before its first work.

        vLLM loads with its first answers, since scores and counts need the model itself. Raises UserError.
        """
        config = self._config
        torch.set_num_threads(config.scaling.threads or max(1, usable_cores() // (config.evaluate.num_actors or 1)))
        if not self._uses_vllm:
            _ = self._model

    def do(self, work: Work) -> None:
        """Do a work and write its file."""
        if work.questions is not None:
            self._folder.write_json(work.name, self.count(work.questions))
        else:
            self.write(work.name, [work])

    def write(self, name: str, works: Sequence[Work]) -> pa.Table:
        """Write a file of the predictions, or scores, of works, and beside it how long they took; return its table."""
        begun = time.perf_counter()
        tables = [self.predict(work) if work.candidates is None else self.score(work) for work in works]
        self._folder.write_json(timing_of(name), {"seconds": round(time.perf_counter() - begun, 6)})
        self._folder.write_parquet(name, table := pa.concat_tables(tables))
        return table

    def predict(self, work: Work) -> pa.Table:
        """Answer the prompts of a work: a table of SCHEMA."""
        rows = [
            {**_names(prompt), **self._read(prompt, answer)}
            for prompt, answers in zip(work.prompts, self._decode(work.prompts), strict=True)
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
        outcome = validate(LearnedLoss(self._model), questions, rows_at_once=4, rank=0, num_workers=1)
        self._model.eval()  # validation ends in training mode
        return dict(zip(outcome.names, outcome.solved.tolist(), strict=True))

    @cached_property
    def _model(self) -> Any:
        if self._given is not None:
            return self._given
        config = self._config
        model = load_for_inference(config.model, config.storage, config.evaluate.checkpoint)
        return use_onednn(place(model, config.scaling.on_gpu))

    @cached_property
    def _writer(self) -> Writer:
        grammar = GridGrammar(self._codec) if self._config.evaluate.constrain else None
        codec = self._codec
        return Writer(self._model, [codec.end_id], codec.tokenizer.pad_token_id or 0, grammar, codec.positions)

    @cached_property
    def _vllm_writer(self) -> VllmWriter:
        config, evaluate = self._config, self._config.evaluate
        room = evaluate.max_prompt_tokens + max(
            self._codec.text_length_bound(MAX_SIDE), evaluate.max_description_tokens
        )
        most = min(room, most_tokens(config.model, config.storage) or room)
        with tempfile.TemporaryDirectory(prefix="arc_ray-") as folder:
            base, adapter = served(config.model, config.storage, evaluate.checkpoint, Path(folder))
            gpus = evaluate.gpus if config.scaling.on_gpu else 0
            return VllmWriter(base, adapter, DTYPES[config.model.dtype], self._codec.end_id, most, gpus)

    def _decode(self, prompts: Sequence[Prompt]) -> list[list[Answer]]:
        """Answer prompts by the strategy of `evaluate.decode`; search may leave one without any answer."""
        evaluate, seed = self._config.evaluate, self._config.seed
        ids, limits = [prompt.ids for prompt in prompts], [prompt.limit for prompt in prompts]
        if self._uses_vllm:
            samples, temperature = (evaluate.samples, evaluate.temperature) if evaluate.decode == "sample" else (1, 0.0)
            seeds = [[digest64(*_key(seed, prompt), k) % 2**31 for k in range(samples)] for prompt in prompts]
            return self._vllm_writer.write(ids, limits, seeds, temperature)
        lookahead = evaluate.lookahead if attends_to_all(self._model) else 0
        if evaluate.decode == "search":
            return find_answers(self._writer, ids, limits, evaluate.min_probability, lookahead)
        if evaluate.decode == "sample":
            draws = [draws_for(evaluate.samples, seed, prompt) for prompt in prompts]
            return generate_samples(self._writer, ids, limits, draws, evaluate.temperature, lookahead)
        return [[answer] for answer in generate_greedily(self._writer, ids, limits, lookahead)]

    def _read(self, prompt: Prompt, answer: Answer | None) -> dict[str, Any]:
        if answer is None:
            return {"failure": "none_above_min_probability"}
        text = self._codec.tokenizer.decode(answer.ids)
        read = self._codec.encoder.parse(text) if answer.is_complete else "unfinished"
        is_grid = isinstance(read, np.ndarray)
        return {
            "text": text,
            "grid": json.dumps(prompt.augmentation.invert(read).tolist()) if is_grid else None,
            "failure": None if is_grid else read,
            "log_probability": answer.log_probability,
            "passes": answer.passes,
            "tokens": len(answer.ids) + answer.is_complete,
        }


def draws_for(samples: int, seed: int, prompt: Prompt) -> npt.NDArray[np.float64]:
    """Return the numbers that decide a view's samples, (samples, limit): the k-th sample's do not depend on the others."""
    return np.stack([rng_for(*_key(seed, prompt), k).random(prompt.limit) for k in range(samples)])


def _key(seed: int, prompt: Prompt) -> tuple[object, ...]:
    return (seed, "sample", prompt.task, prompt.output, prompt.view)


def _names(prompt: Prompt) -> dict[str, Any]:
    return {"task": prompt.task, "output": prompt.output, "view": prompt.view}
