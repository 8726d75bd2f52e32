"""vLLM as another writer of greedy and sampled answers: the same prompts in, the same `Answer`s out.

It lives in an environment of its own, because it pins torch. Log-probabilities are those before the temperature. The engine
runs in this process, so that it ends with the actor that holds it; a process can hold one at a time.
"""

import os
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from arc_ray.decode.writer import Answer
from arc_ray.errors import UserError
from arc_ray.prompts.encoders import Ids

SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_KVCACHE_SPACE": "4",
}
"""Environment variables of vLLM, unless they are set. Without the last, in GiB, it takes nearly all of a CPU's memory."""

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks of adapters that vLLM makes room for."""


def refuse_without_vllm() -> None:
    """Raise UserError where vLLM is not installed."""
    if find_spec("vllm") is None:
        raise UserError(
            "evaluate.backend vllm: the package vllm is not installed here; install '.[vllm]' in an environment of its own"
            " (`make test-vllm` makes one for CPUs), or set evaluate.backend=transformers"
        )


class VllmWriter:
    """An engine that holds a model and, beside it, at most one LoRA adapter."""

    def __init__(
        self, base: str, adapter: tuple[str, int] | None, dtype: torch.dtype, end_id: int, most: int, gpus: float
    ) -> None:
        """Load a model (folder or hub name) for rows of at most `most` tokens; `adapter` is a folder and its rank.

        `gpus` is the share of a GPU that is taken, 0 on a CPU. Raises UserError for what vLLM does not serve.
        """
        refuse_without_vllm()
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        self._vllm, self._end, self._adapter = import_module("vllm"), end_id, None
        # On a CPU compiling takes minutes; on a GPU vLLM leaves a tenth to others by itself.
        how: dict[str, Any] = {"gpu_memory_utilization": 0.9 * gpus} if gpus else {"enforce_eager": True}
        if adapter:
            folder, rank = adapter
            how |= {"enable_lora": True, "max_lora_rank": min((room for room in RANKS if room >= rank), default=rank)}
            self._adapter = import_module("vllm.lora.request").LoRARequest("adapter", 1, folder)
        try:
            self._engine: Any = self._vllm.LLM(model=base, dtype=dtype, max_model_len=most, **how)
            if self._adapter:
                self._engine.llm_engine.add_lora(self._adapter)
        except (ValueError, RuntimeError) as error:
            why = " ".join(str(error).split())  # pydantic's has several lines
            raise UserError(
                f"evaluate.backend vllm: it does not serve {base}: {why}; set evaluate.backend=transformers"
            ) from error

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
            lora_request=self._adapter,
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
