"""What voting and tuning gain: one attempt and two, told apart."""

from typing import Any

import pytest
from builders import config_with

from arc_ray.evaluate.results import gains

RIGHT, WRONG, OTHER = [[1]], [[2]], [[3]]


def answer(task: str, greedy: Any, *attempts: Any) -> dict[str, Any]:
    return {"task": task, "truth": RIGHT, "greedy": greedy, "attempts": list(attempts), "is_right": RIGHT in attempts}


ANSWERS = [
    answer("a#0", WRONG, WRONG, RIGHT),  # only the second attempt is right
    answer("b#0", WRONG, RIGHT, WRONG),  # the vote is
    answer("c#0", RIGHT, WRONG, OTHER),  # the vote loses what greedy had
    answer("d#0", RIGHT, RIGHT),
]


def test_a_second_attempt_is_no_gain_of_the_first():
    """Would catch a gain of voting that is only that two attempts are right more often than one."""
    found = gains(config_with(evaluate__symmetries=8), {"": ANSWERS})
    assert {path: effect.value for path, effect in found.items()} == {
        ("voting", "gain"): 0.0,
        ("voting", "two_attempts", "gain"): 0.25,
    }
    assert all(effect.low < effect.value < effect.high for effect in found.values())


def test_tuning_gains_in_two_attempts_or_in_its_greedy_answer():
    """Would catch votes that hide what tuning does to one answer, or the other way round."""
    untuned = [answer("a#0", WRONG, WRONG), answer("b#0", WRONG, RIGHT), answer("c#0", WRONG, WRONG)]
    tuned = [answer("a#0", RIGHT, RIGHT), answer("b#0", RIGHT, RIGHT), answer("c#0", WRONG, OTHER)]
    found = gains(config_with(evaluate__symmetries=1), {"": tuned, "untuned": untuned})
    assert found["tuning", "gain"].value == pytest.approx(1 / 3)
    assert found["tuning", "greedy", "gain"].value == pytest.approx(2 / 3)
    sampled = gains(config_with(evaluate__decode="sample"), {"": tuned, "untuned": untuned})
    assert list(sampled) == [("tuning", "gain")]


@pytest.mark.parametrize("settings", [{"evaluate__symmetries": 1}, {"evaluate__decode": "sample"}])
def test_there_is_no_gain_without_views_or_without_a_greedy_answer(settings: dict[str, Any]):
    assert gains(config_with(**settings), {"": ANSWERS}) == {}


def test_hidden_outputs_tell_no_gain():
    config = config_with(evaluate__symmetries=8)
    assert gains(config, {"": [{**a, "truth": None} for a in ANSWERS]}) == {}
