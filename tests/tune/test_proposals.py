"""Optuna's proposals: in the space, the same each time, none twice, and none lost when a search goes on."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ray.tune.search import Searcher

from arc_ray.tune.proposals import Proposals
from arc_ray.tune.space import Point, trial_name

SPACE: dict[str, dict[str, Any]] = {
    "train.lr": {"loguniform": [1e-5, 1e-1]},
    "train.weight_decay": {"uniform": [0.0, 1.0]},
    "train.epochs": {"choice": [1, 2, 4]},
    "model.lora.targets": {"choice": ["all-linear", ["q_proj"], None]},
}


def merit(point: Point) -> float:
    """Best at lr 1e-3 and 4 epochs."""
    return -((np.log10(point["train.lr"]) + 3) ** 2) - 0.2 * (point["train.epochs"] != 4)


def search(
    num_trials: int, known: Sequence[Point] = (), seed: int = 0, space: Mapping[str, Any] = SPACE, total: int = 40
) -> list[Point]:
    """Run a search as Tune would, one trial after another; returns its points."""
    proposals, found = Proposals(space, {"seed": 7}, known, total, seed, "score"), []
    for number in range(num_trials):
        proposed = proposals.suggest(f"trial{number}")
        if proposed == Searcher.FINISHED:
            break
        assert isinstance(proposed, dict)
        found.append(proposed["point"])
        result = {"score": merit(found[-1]) if "train.lr" in found[-1] else 0.0, "training_iteration": 1}
        proposals.on_trial_result(f"trial{number}", result)
        proposals.on_trial_complete(f"trial{number}", result)
    return found


def test_proposals_lie_in_the_space_and_hold_what_is_fixed():
    for point in search(30):
        assert 1e-5 <= point["train.lr"] <= 1e-1
        assert 0 <= point["train.weight_decay"] <= 1
        assert point["train.epochs"] in (1, 2, 4)
        assert point["model.lora.targets"] in ("all-linear", ["q_proj"], None)
        assert point["seed"] == 7


def test_proposals_follow_the_seed():
    assert search(12) == search(12)
    assert search(12, seed=1) != search(12)


def test_proposals_learn_from_results():
    """Would catch results that never reach Optuna: 40 points would then be spread evenly over four decades."""
    late = [merit(point) for point in search(40)[20:]]
    first = [merit(point) for point in search(40)[:10]]
    assert np.mean(late) > np.mean(first) + 0.5
    assert max(late) > -0.1


def test_a_search_that_goes_on_begins_with_what_it_knows_and_repeats_none():
    """Would catch a sampler that draws its first points again, which would train them twice into one folder."""
    known = search(6)
    resumed = search(15, known)
    assert resumed[:6] == known
    assert len({trial_name(point) for point in resumed}) == 15
    assert search(15, known) == resumed
    assert sum(merit(point) > -0.3 for point in search(40, known)) > 5, "it learns from the replayed ones too"


def test_a_space_that_is_used_up_ends_the_search():
    space = {"train.epochs": {"choice": [1, 2, 4]}}
    assert sorted(point["train.epochs"] for point in search(9, space=space)) == [1, 2, 4]
