"""submission.json: written whole, checked whoever wrote it, read back."""

import copy
import json

import numpy as np
import pytest

from arc_ray.errors import UserError
from arc_ray.scores import score_attempts
from arc_ray.submission import read_submission, validate_submission, write_submission
from arc_ray.tasks import Pair, Task

ONE, TWO = np.array([[1, 1]], np.uint8), np.array([[2], [1]], np.uint8)
PAIR = Pair(ONE, ONE)
TASKS = [Task("aaa", (PAIR, PAIR), (PAIR,)), Task("bbb", (PAIR, PAIR), (PAIR, PAIR))]
SOUND = write_submission(TASKS, {"aaa": [[ONE, TWO]], "bbb": [[ONE], []]})
FILE = "mine.json"


def broken(change) -> object:
    value = json.loads(json.dumps(SOUND))
    return change(value) or value


def test_every_output_of_every_task_is_in_the_file_answered_or_not():
    """Kaggle refuses a file with a gap; the reference order of outputs is the order of test pairs."""
    assert SOUND == {
        "aaa": [{"attempt_1": [[1, 1]], "attempt_2": [[2], [1]]}],
        "bbb": [{"attempt_1": [[1, 1]], "attempt_2": [[1, 1]]}, {"attempt_1": [[0]], "attempt_2": [[0]]}],
    }
    assert write_submission(TASKS, {}).keys() == SOUND.keys()


def test_what_is_written_is_sound_and_scores_the_same_when_read_back():
    value = json.loads(json.dumps(SOUND))
    assert validate_submission(value, TASKS, FILE) == []
    scores = score_attempts(TASKS, read_submission(value, TASKS, FILE))
    assert (scores["per_output"].right, scores["strict"].right) == (2, 1)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda v: [v], "mine.json: a submission is an object"),
        (lambda v: v.pop("bbb") and None, "mine.json: task bbb: missing; every task needs 2 outputs"),
        (lambda v: v.update(ccc=[]), "mine.json: task ccc: unknown"),
        (lambda v: v["bbb"].pop() and None, "mine.json: task bbb: 1 outputs, but the task has 2 test pairs"),
        (lambda v: v.update(aaa=v["aaa"][0]), "mine.json: task aaa: give a list with one object per test output"),
        (lambda v: v["bbb"].__setitem__(1, [[1]]), "mine.json: task bbb, output 1: an output is an object"),
        (lambda v: v["bbb"][1].pop("attempt_2") and None, "mine.json: task bbb, output 1: attempt_2 is missing"),
        (lambda v: v["bbb"][0].update(attempt_3=[[1]]), "mine.json: task bbb, output 0: attempt_3 is surplus"),
        (
            lambda v: v["bbb"][0].update(attempt_1=[[1, 2], [3]]),
            "mine.json: task bbb, output 0, attempt_1: rows differ",
        ),
        (lambda v: v["bbb"][0].update(attempt_1=[[10]]), "mine.json: task bbb, output 0, attempt_1: 10 is no colour"),
        (lambda v: v["bbb"][0].update(attempt_2=[[-1]]), "mine.json: task bbb, output 0, attempt_2: -1 is no colour"),
        (lambda v: v["bbb"][0].update(attempt_2=[[1.0]]), "mine.json: task bbb, output 0, attempt_2: 1.0 is no colour"),
        (
            lambda v: v["bbb"][0].update(attempt_2=[[1] * 31]),
            "mine.json: task bbb, output 0, attempt_2: the grid is 1x31",
        ),
        (
            lambda v: v["bbb"][0].update(attempt_2=[[1]] * 31),
            "mine.json: task bbb, output 0, attempt_2: the grid is 31x1",
        ),
        (
            lambda v: v["bbb"][0].update(attempt_2=[]),
            "mine.json: task bbb, output 0, attempt_2: a grid is a non-empty list",
        ),
        (
            lambda v: v["bbb"][0].update(attempt_2=None),
            "mine.json: task bbb, output 0, attempt_2: a grid is a non-empty",
        ),
    ],
)
def test_each_mistake_is_one_problem_that_names_file_task_output_and_reason(change, problem):
    problems = validate_submission(broken(change), TASKS, FILE)
    assert len(problems) == 1
    assert problems[0].startswith(problem)
    with pytest.raises(UserError) as raised:
        read_submission(broken(change), TASKS, FILE)
    assert str(raised.value) == problems[0]


def test_all_problems_are_listed_but_an_error_shows_the_first_ones():
    """A file with nothing right in it would print thousands of lines."""
    tasks = [Task(f"{i:03d}", (PAIR, PAIR), (PAIR,)) for i in range(50)]
    assert len(validate_submission({}, tasks, FILE)) == 50
    with pytest.raises(UserError, match=r"and 40 more problems"):
        read_submission({}, tasks, FILE)


def test_checking_changes_nothing():
    value = copy.deepcopy(SOUND)
    validate_submission(value, TASKS, FILE)
    assert value == SOUND
