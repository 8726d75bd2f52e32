"""vLLM as another writer of greedy and sampled answers: the same prompts in, the same `Answer`s out.

It is an extra with an environment of its own, because it pins its torch: Ray 2.60's `ray[llm]` takes vllm 0.29.0, which
excludes later ones. Written after the interface of its V1 engine: token ids with the end token, log-probabilities before
the temperature if any are asked for. It has not been run yet: the machines it was written on have no GPU.
"""

import os
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

from arc_ray.decode.writer import Answer
from arc_ray.prompts.encoders import Ids


class VllmWriter:
    """An engine that holds a whole model (adapters merged)."""

    def __init__(self, folder: str, dtype: str, end_id: int) -> None:
        """Load the model of a folder as `transformers` saves it; `dtype` is float32, bfloat16 or float16."""
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        self._vllm, self._end = import_module("vllm"), end_id
        self._engine: Any = self._vllm.LLM(model=folder, dtype=dtype)

    def write(
        self, prompts: Sequence[Ids], limits: Sequence[int], seeds: Sequence[Sequence[int]], temperature: float
    ) -> list[list[Answer]]:
        """Write an answer for each seed of each prompt; temperature 0 is greedy. A prompt's samples share its cache."""
        requests = [
            (prompt, limit, seed) for prompt, limit, own in zip(prompts, limits, seeds, strict=True) for seed in own
        ]
        # detokenize=False: text is decoded from ids elsewhere. logprobs=0 asks for those of the written tokens only.
        same = {"stop_token_ids": [self._end], "ignore_eos": True, "logprobs": 0, "detokenize": False}
        ask = partial(self._vllm.SamplingParams, temperature=temperature, **same)
        found = self._engine.generate(
            [{"prompt_token_ids": prompt.tolist()} for prompt, _, _ in requests],
            [ask(max_tokens=limit, seed=seed) for _, limit, seed in requests],
            use_tqdm=False,
        )
        answers = map(self._answer, found)
        return [[next(answers) for _ in own] for own in seeds]

    def _answer(self, found: Any) -> Answer:
        output = found.outputs[0]
        ids = list(output.token_ids)
        is_complete = ids[-1:] == [self._end]
        written = np.array(ids[:-1] if is_complete else ids, np.int32)
        return Answer(written, float(output.cumulative_logprob), is_complete, len(ids))
