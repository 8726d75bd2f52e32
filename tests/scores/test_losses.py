"""What became of an output: one class, the first that fits, and shares of classes that add up."""

import numpy as np
import pytest

from arc_ray.scores.losses import BEST, ENDINGS, ending_of, shares_by_rule, shares_of_endings

TRUTH = np.arange(20, dtype=np.uint8).reshape(4, 5) % 10
INPUT = np.zeros((4, 5), np.uint8)
ONE_WRONG, MANY_WRONG = TRUTH.copy(), TRUTH[::-1].copy()
ONE_WRONG[0, 0] = 9
SMALL = TRUTH[:2]


@pytest.mark.parametrize(
    ("ending", "attempts", "candidates"),
    [
        ("right", [SMALL, TRUTH], [SMALL, TRUTH]),
        ("not_chosen", [ONE_WRONG, SMALL], [None, SMALL, TRUTH]),
        ("few_wrong", [SMALL, ONE_WRONG], [SMALL, ONE_WRONG]),
        ("copy", [INPUT, MANY_WRONG], [INPUT, MANY_WRONG]),
        ("many_wrong", [SMALL, MANY_WRONG], [SMALL, MANY_WRONG]),
        ("wrong_size", [SMALL], [SMALL, None]),
        ("no_grid", [], [None, None]),
    ],
)
def test_an_output_has_the_first_ending_that_fits(ending: str, attempts: list, candidates: list) -> None:
    """Catches an output that selection lost and that is called wrong, and a copy that is taken for a near miss."""
    assert ending_of(TRUTH, attempts, candidates, INPUT) == ending


def test_an_output_that_was_not_asked_is_told_apart() -> None:
    """Catches prompts that are too long counted as answers that nobody can read."""
    assert ending_of(TRUTH, [], [], INPUT, was_asked=False) == "not_asked"


def test_a_right_copy_is_right() -> None:
    """Catches a task whose output is its input, solved, and called a copy."""
    assert ending_of(INPUT, [INPUT], [INPUT], INPUT) == "right"


def test_shares_add_up_and_lie_within_their_intervals() -> None:
    """Catches outputs of one task counted as independent, and shares over tasks where outputs are meant."""
    endings = ["right"] * 6 + ["copy"] * 3 + ["no_grid"]
    tasks = ["a", "a", "b", "c", "d", "e", "f", "g", "h", "h"]
    shares = shares_of_endings(endings, tasks, 0.95)
    assert {name: share.value for name, share in shares.items()} == pytest.approx(
        {"right": 0.6, "copy": 0.3, "no_grid": 0.1}
    )
    assert [*shares] == [name for name in ENDINGS if name in shares]
    assert all(0 <= share.low < share.value < share.high <= 1 for share in shares.values())
    alone = shares_of_endings(endings, [*"abcdefghij"], 0.95)
    assert shares["right"].high - shares["right"].low > alone["right"].high - alone["right"].low


def test_no_rule_exceeds_the_best_possible_and_one_that_was_not_scored_everywhere_is_left_out() -> None:
    """Catches a rule judged on some outputs only, and a bound that counts what no view wrote."""
    endings = ["right", "not_chosen", "many_wrong", "right"]
    right_by = [{"majority": r == 1, "product_of_experts": p == 1} for r, p in ((1, 1), (0, 1), (0, 0), (1, 0))]
    shares = shares_by_rule(right_by, endings, [*"abcd"], 0.95)
    assert {name: share.value for name, share in shares.items()} == {
        "majority": 0.5,
        "product_of_experts": 0.5,
        BEST: 0.75,
    }
    del right_by[3]["product_of_experts"]
    assert [*shares_by_rule(right_by, endings, [*"abcd"], 0.95)] == ["majority", BEST]
