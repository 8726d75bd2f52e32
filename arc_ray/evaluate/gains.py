"""What one way of answering gains over another on the same tasks: paired, with an interval."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from arc_ray.config.searching import EvaluateConfig
from arc_ray.intervals import paired_effect

Answers = Sequence[Mapping[str, Any]]
"""One record a test output, as answers.json has them."""


def gain(better: Answers, worse: Answers, prefix: str) -> dict[str, float]:
    """Return how much larger a share of outputs `better` solves than `worse`: <prefix>, <prefix>/low and <prefix>/high.

    The 95 % interval is of the differences, output by output (see `intervals.paired_effect`): two answers to one task
    have its difficulty in common, which intervals of two shares would count twice. Empty where outputs are hidden, and
    for fewer than two of them.
    """
    return _effect(better, [a["is_right"] for a in better], [a["is_right"] for a in worse], prefix)


def gain_of_voting(config: EvaluateConfig, answers: Answers, prefix: str) -> dict[str, float]:
    """Return what voting gains over the greedy answer of the plain view: <prefix>/gain with its first attempt alone, and
    <prefix>/two_attempts/gain with both, as ARC scores; greedy decoding has no second one.

    Empty where there is no greedy answer, or no other view.
    """
    if config.decode != "greedy" or config.symmetries * config.copies == 1:
        return {}
    greedy = _greedy_is_right(answers)
    first = [answer["truth"] in answer["attempts"][:1] for answer in answers]
    both = [answer["is_right"] for answer in answers]
    return _effect(answers, first, greedy, f"{prefix}/gain") | _effect(
        answers, both, greedy, f"{prefix}/two_attempts/gain"
    )


def gain_of_tuning(config: EvaluateConfig, tuned: Answers, untuned: Answers, prefix: str) -> dict[str, float]:
    """Return what test-time training gains: <prefix>/gain in two attempts, and <prefix>/greedy/gain of the plain view's one
    greedy answer, where answers are greedy.
    """
    found = gain(tuned, untuned, f"{prefix}/gain")
    if config.decode != "greedy":
        return found
    return found | _effect(tuned, _greedy_is_right(tuned), _greedy_is_right(untuned), f"{prefix}/greedy/gain")


def _greedy_is_right(answers: Answers) -> list[bool]:
    return [answer["truth"] == answer["greedy"] for answer in answers]


def _effect(answers: Answers, better: Sequence[bool], worse: Sequence[bool], prefix: str) -> dict[str, float]:
    if len(answers) < 2 or any(answer["truth"] is None for answer in answers):
        return {}
    arm, baseline = (np.array([right], np.float64) for right in (better, worse))
    effect = paired_effect(arm, baseline, [answer["task"] for answer in answers])
    return {prefix: effect.value, f"{prefix}/low": effect.low, f"{prefix}/high": effect.high}
