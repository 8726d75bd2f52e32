"""What one way of answering gains over another on the same tasks: paired, with an interval."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from arc_ray.config import Config
from arc_ray.scores.intervals import paired_effect

Answers = Sequence[Mapping[str, Any]]
"""One record a test output, as answers.json has them."""


def gain(config: Config, better: Answers, worse: Answers, prefix: str) -> dict[str, float]:
    """Return how much larger a share of outputs `better` solves than `worse`: <prefix>, <prefix>/low and <prefix>/high.

    The interval, of level `study.confidence`, is of the differences, output by output (see `intervals.paired_effect`):
    two answers to one task have its difficulty in common, which intervals of two shares would count twice. Empty where
    outputs are hidden, and for fewer than two of them.
    """
    return _effect(config, better, [a["is_right"] for a in better], [a["is_right"] for a in worse], prefix)


def gain_of_voting(config: Config, answers: Answers, prefix: str) -> dict[str, float]:
    """Return what voting gains over the greedy answer of the plain view: <prefix>/gain with its first attempt alone, and
    <prefix>/two_attempts/gain with both, as ARC scores; greedy decoding has no second one.

    Empty where there is no greedy answer, or no other view.
    """
    evaluate = config.evaluate
    if evaluate.decode != "greedy" or evaluate.symmetries * evaluate.copies == 1:
        return {}
    greedy = _greedy_is_right(answers)
    first = [answer["truth"] in answer["attempts"][:1] for answer in answers]
    both = [answer["is_right"] for answer in answers]
    return _effect(config, answers, first, greedy, f"{prefix}/gain") | _effect(
        config, answers, both, greedy, f"{prefix}/two_attempts/gain"
    )


def gain_of_tuning(config: Config, tuned: Answers, untuned: Answers, prefix: str) -> dict[str, float]:
    """Return what test-time training gains: <prefix>/gain in two attempts, and <prefix>/greedy/gain of the plain view's one
    greedy answer, where answers are greedy.
    """
    found = gain(config, tuned, untuned, f"{prefix}/gain")
    if config.evaluate.decode != "greedy":
        return found
    return found | _effect(config, tuned, _greedy_is_right(tuned), _greedy_is_right(untuned), f"{prefix}/greedy/gain")


def _greedy_is_right(answers: Answers) -> list[bool]:
    return [answer["truth"] == answer["greedy"] for answer in answers]


def _effect(
    config: Config, answers: Answers, better: Sequence[bool], worse: Sequence[bool], prefix: str
) -> dict[str, float]:
    if len(answers) < 2 or any(answer["truth"] is None for answer in answers):
        return {}
    arm, baseline = (np.array([right], np.float64) for right in (better, worse))
    effect = paired_effect(arm, baseline, [answer["task"] for answer in answers], config.study.confidence)
    return {prefix: effect.value, f"{prefix}/low": effect.low, f"{prefix}/high": effect.high}
