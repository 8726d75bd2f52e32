"""How a batch of prompts is answered: by the strategy of `evaluate.decode`, with randomness that follows from names."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from arc_ray.config import Config
from arc_ray.decode.likelihood import find_answers
from arc_ray.decode.vllm import VllmWriter
from arc_ray.decode.writer import Answer, Writer, generate_greedily, generate_samples
from arc_ray.evaluate.questions import Prompt
from arc_ray.models.attention import attends_to_all
from arc_ray.seeding import digest64, rng_for


def decode(config: Config, writer: Writer | VllmWriter, prompts: Sequence[Prompt]) -> list[list[Answer]]:
    """Answer prompts; search may leave one without any answer."""
    evaluate = config.evaluate
    ids, limits = [prompt.ids for prompt in prompts], [prompt.limit for prompt in prompts]
    if isinstance(writer, VllmWriter):
        samples, temperature = (evaluate.samples, evaluate.temperature) if evaluate.decode == "sample" else (1, 0.0)
        seeds = [[digest64(*_key(config, prompt), k) % 2**31 for k in range(samples)] for prompt in prompts]
        return writer.write(ids, limits, seeds, temperature)
    lookahead = evaluate.lookahead if attends_to_all(writer.model) else 0
    if evaluate.decode == "search":
        return find_answers(writer, ids, limits, evaluate.min_probability)
    if evaluate.decode == "sample":
        draws = [draws_for(config, prompt) for prompt in prompts]
        return generate_samples(writer, ids, limits, draws, evaluate.temperature, lookahead)
    return [[answer] for answer in generate_greedily(writer, ids, limits, lookahead)]


def draws_for(config: Config, prompt: Prompt) -> npt.NDArray[np.float64]:
    """Return the numbers that decide a view's samples, (samples, limit): the k-th sample's do not depend on the others."""
    key = _key(config, prompt)
    return np.stack([rng_for(*key, k).random(prompt.limit) for k in range(config.evaluate.samples)])


def _key(config: Config, prompt: Prompt) -> tuple[object, ...]:
    return (config.seed, "sample", prompt.task, prompt.output, prompt.view)
