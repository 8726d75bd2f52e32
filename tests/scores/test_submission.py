"""submission.json: written whole, checked whoever wrote it, read back."""

import json

import numpy as np
import pytest

from arc_ray.errors import UserError
from arc_ray.scores.attempts import score_attempts
from arc_ray.scores.submission import MISTAKES, read_submission, write_submission
from arc_ray.tasks.task import Pair, Task

ONE, TWO = np.array([[1, 1]], np.uint8), np.array([[2], [1]], np.uint8)
PAIR = Pair(ONE, ONE)
TASKS = [Task("aaa", (PAIR, PAIR), (PAIR,)), Task("bbb", (PAIR, PAIR), (PAIR, PAIR))]
SOUND = write_submission(TASKS, {"aaa": [[ONE, TWO]], "bbb": [[ONE], []]})


def test_every_output_of_every_task_is_in_the_file_answered_or_not():
    """Kaggle refuses a file with a gap; the reference order of outputs is the order of test pairs."""
    assert SOUND == {
        "aaa": [{"attempt_1": [[1, 1]], "attempt_2": [[2], [1]]}],
        "bbb": [{"attempt_1": [[1, 1]], "attempt_2": [[1, 1]]}, {"attempt_1": [[0]], "attempt_2": [[0]]}],
    }
    assert write_submission(TASKS, {}).keys() == SOUND.keys()


def test_what_is_written_is_sound_and_scores_the_same_when_read_back():
    attempts, mistakes = read_submission(json.loads(json.dumps(SOUND)), TASKS)
    assert mistakes == []
    scores = score_attempts(TASKS, attempts)
    assert (scores["per_output"].right, scores["per_output"].of, scores["strict"].right) == (2, 3, 1)


def entry(**attempts: object) -> dict[str, object]:
    return {"attempt_1": [[1, 1]], "attempt_2": [[2], [1]]} | attempts


BROKEN = [
    # aaa's output and bbb's first are right in SOUND, bbb's second is not: (change, right outputs, kinds of mistakes)
    (lambda v: v.pop("bbb") and None, 1, ["missing task"]),
    (lambda v: v.clear(), 0, ["missing task", "missing task"]),
    (lambda v: v.update(ccc=[]), 2, ["unknown task"]),
    (lambda v: v["bbb"].pop() and None, 2, ["missing output"]),
    (lambda v: v["bbb"].clear(), 1, ["missing output", "missing output"]),
    (lambda v: v["bbb"].append(entry()), 2, ["surplus output"]),
    (lambda v: v.update(aaa=v["aaa"][0]), 1, ["no list"]),
    (lambda v: v.update(aaa=None), 1, ["no list"]),
    (lambda v: v.update(aaa="[[1, 1]]"), 1, ["no list"]),
    (lambda v: v.update(aaa=[[[1, 1]]]), 1, ["no object"]),
    (lambda v: v.update(aaa=[None]), 1, ["no object"]),
    (lambda v: v["aaa"][0].pop("attempt_2") and None, 2, ["missing attempt"]),
    (lambda v: v["aaa"][0].pop("attempt_1") and None, 1, ["missing attempt"]),
    (lambda v: v["aaa"][0].clear(), 1, ["missing attempt", "missing attempt"]),
    (lambda v: v.update(aaa=[{"attempt_1": [[3]], "attempt_2": [[3]], "attempt_3": [[1, 1]]}]), 1, ["surplus attempt"]),
    (lambda v: v["aaa"][0].update(attempt_2=None), 2, ["empty attempt"]),
    (lambda v: v["aaa"][0].update(attempt_1=None), 1, ["empty attempt"]),
    (lambda v: v["aaa"][0].update(attempt_1=[]), 1, ["empty attempt"]),
    (lambda v: v["aaa"][0].update(attempt_1=[[]]), 1, ["no grid"]),
    (lambda v: v["aaa"][0].update(attempt_1=[[1, 1], [1]]), 1, ["no grid"]),
    (lambda v: v["aaa"][0].update(attempt_1=[1, 1]), 1, ["no grid"]),
    (lambda v: v["aaa"][0].update(attempt_1="11"), 1, ["no grid"]),
    (lambda v: v["aaa"][0].update(attempt_1={"0": [1, 1]}), 1, ["no grid"]),
    (lambda v: v["aaa"][0].update(attempt_1=[["1", "1"]]), 1, ["no grid"]),
    (lambda v: v["aaa"][0].update(attempt_1=[[1, None]]), 1, ["no grid"]),
    (lambda v: v["aaa"][0].update(attempt_1=[[1, 10]]), 1, ["no grid"]),
    (lambda v: v["aaa"][0].update(attempt_1=[[1, -1]]), 1, ["no grid"]),
    (lambda v: v["aaa"][0].update(attempt_1=[[1, 1.5]]), 1, ["no grid"]),
    (lambda v: v["aaa"][0].update(attempt_1=[[1, float("nan")]]), 1, ["no grid"]),
    (lambda v: v["aaa"][0].update(attempt_1=[[1] * 31]), 1, ["no grid"]),
    (lambda v: v["aaa"][0].update(attempt_1=[[1]] * 31), 1, ["no grid"]),
    (lambda v: v["aaa"][0].update(attempt_1=[[1.0, 1]]), 2, ["no integer"]),
    (lambda v: v["aaa"][0].update(attempt_1=[[True, 1]]), 2, ["no integer"]),
]


@pytest.mark.parametrize(("change", "right", "kinds"), BROKEN)
def test_a_malformed_submission_is_scored_and_every_mistake_has_its_rule(change, right: int, kinds: list[str]):
    """Would catch a mistake that costs a sound answer, one that is worth a point, and a missing task that is not counted."""
    value = json.loads(json.dumps(SOUND))
    change(value)
    before = repr(value)
    attempts, mistakes = read_submission(value, TASKS)
    assert [mistake.kind for mistake in mistakes] == kinds
    assert set(kinds) <= MISTAKES.keys()
    assert all(mistake.place[:3] in ("aaa", "bbb", "ccc") for mistake in mistakes)
    scores = score_attempts(TASKS, attempts)
    assert (scores["per_output"].right, scores["per_output"].of, scores["strict"].of) == (right, 3, 2)
    assert repr(value) == before, "reading changes nothing"


@pytest.mark.parametrize("value", [[SOUND], None, "{}"])
def test_what_is_no_object_has_nothing_to_score(value: object):
    with pytest.raises(UserError, match="a submission is an object"):
        read_submission(value, TASKS)


def test_results_of_the_official_harness_are_read_with_their_metadata():
    """Answers as JSON text or as lists, an attempt that failed, outputs in another order: placed by their pair_index."""

    def attempt(answer: object, pair: int | None) -> dict[str, object]:
        return {"answer": answer, "metadata": {"model": "m", "pair_index": pair, "cost": {"total_cost": 0.1}}}

    value = {
        "aaa": [{"attempt_1": attempt("[[1, 1]]", 0), "attempt_2": None}],
        "bbb": [
            {"attempt_1": attempt("no idea", 1), "attempt_2": attempt([[1, 1]], 1)},
            {"attempt_1": attempt([[3]], 0), "attempt_2": attempt([], 0)},
        ],
    }
    attempts, mistakes = read_submission(value, TASKS)
    assert [[grid.tolist() for grid in output] for output in attempts["bbb"]] == [[[[3]]], [[[1, 1]]]]
    assert [(m.kind, m.place.partition(":")[0]) for m in mistakes] == [
        ("empty attempt", "aaa, output 0, attempt_2"),
        ("no grid", "bbb, output 1, attempt_1"),
        ("empty attempt", "bbb, output 0, attempt_2"),
    ]
    assert score_attempts(TASKS, attempts)["per_output"].right == 2
