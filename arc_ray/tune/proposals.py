"""Optuna chooses points: Ray Tune's OptunaSearch over a config's space, taught again what trial folders already hold."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from arc_ray.seeding import rng_for
from arc_ray.tune.space import Point, as_named, trial_name

MOST_TRIES = 50
"""Proposals of points that were tried already, one after another, until the space counts as used up."""


class Proposals(Searcher):
    """Proposes trials as {"point": point}; no point twice, since a point has one folder.

    `known` are the points of an interrupted search, the ended ones first: they are proposed again before any new one,
    so that their folders can tell Optuna what they came to. What follows then depends on the seed and on the number of
    known points; the same seed twice would propose the points again with which the search began.
    """

    def __init__(
        self,
        space: Mapping[str, Mapping[str, Any]],
        fixed: Point,
        known: Sequence[Point],
        num_trials: int,
        seed: int,
        metric: str,
    ) -> None:
        super().__init__(metric=metric, mode="max")
        self._space, self._fixed = space, fixed
        self._left_known, self._names = len(known), {trial_name(point) for point in known}
        self._asked: dict[str, str] = {}
        # A third of the search explores at random; Optuna's own 10 would be all of a small one.
        sampler = optuna.samplers.TPESampler(
            seed=int(rng_for(seed, "optuna", len(known)).integers(2**32)), n_startup_trials=min(10, num_trials // 3 + 1)
        )
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna = OptunaSearch(
            {key: _distribution(spec) for key, spec in space.items()},
            metric=metric,
            mode="max",
            sampler=sampler,
            points_to_evaluate=[{key: _as_parameter(point[key], space[key]) for key in space} for point in known],
        )

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Propose the next known point, else a new one; the search ends early where nothing new is left."""
        for attempt in range(MOST_TRIES):
            asked = f"{trial_id}-{attempt}"
            parameters = self._optuna.suggest(asked)
            assert parameters is not None
            point = {key: _as_value(parameters[key], spec) for key, spec in self._space.items()} | self._fixed
            is_known, self._left_known = self._left_known > 0, self._left_known - 1
            if is_known or trial_name(point) not in self._names:
                self._names.add(trial_name(point))
                self._asked[trial_id] = asked
                return {"point": point}
            self._optuna.on_trial_complete(asked)
        return Searcher.FINISHED

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Pass a validation on to Optuna."""
        self._optuna.on_trial_result(self._asked[trial_id], result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell Optuna what a trial came to, or that it failed."""
        self._optuna.on_trial_complete(self._asked[trial_id], result, error)

    def save(self, checkpoint_path: str) -> None:
        """Save Optuna's state where Tune asks for it; it is not read back, see `arc_ray/tune/search.py`."""
        self._optuna.save(checkpoint_path)


def _distribution(spec: Mapping[str, Any]) -> BaseDistribution:
    """Translate {uniform: [a, b]} and the like; Optuna's categories must be plain values, so lists become JSON text."""
    kind, values = next(iter(spec.items()))
    if kind in ("uniform", "loguniform"):
        return FloatDistribution(*values, log=kind == "loguniform")
    return CategoricalDistribution([json.dumps(value) for value in values])


def _as_parameter(value: Any, spec: Mapping[str, Any]) -> Any:
    return value if next(iter(spec)) in ("uniform", "loguniform") else json.dumps(value)


def _as_value(parameter: Any, spec: Mapping[str, Any]) -> Any:
    return as_named(parameter) if next(iter(spec)) in ("uniform", "loguniform") else json.loads(parameter)
