"""Actors that hold a model and do one work after another; one that is lost is replaced, and its work done again."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import ray
from ray.exceptions import RayActorError, RayError

from arc_ray.cluster.roles import hidden_gpus
from arc_ray.config import Config
from arc_ray.errors import UserError, mistake_in
from arc_ray.evaluate.work import Work

RETRIES = 3
"""Further attempts at a work, and at a start of an actor, before the fault is taken for one that will not pass."""


class PoolWorker(Protocol):
    """What an actor of the pool is."""

    def load(self) -> None:
        """Load the model; not in the constructor, because Ray would not say why that failed. Raises UserError."""

    def do(self, work: Work, /) -> Any:
        """Do a work, write its files and return what is to be known of it."""


Failure = RayError | UserError
"""How a work failed: at every attempt, or by an error that would only come again."""


class Pool:
    """Does works by actors; one that has not started yet holds no work back."""

    def __init__(
        self,
        config: Config,
        worker: type[PoolWorker],
        arguments: tuple[Any, ...],
        num_workers: int,
        gpus: float = 1,
        retries: int = RETRIES,
        deadline: float | None = None,
        own_failures: tuple[type[UserError], ...] = (),
    ) -> None:
        """Make `worker(*arguments)` in each of `num_workers` actors, with a share of a GPU where the config is for GPUs.

        After `deadline` (time.monotonic) no result is waited for. Mistakes of the kinds `own_failures` are those of one
        work, which is not tried again; all others end the pool.
        """
        self._arguments, self._num_workers, self._retries = arguments, num_workers, retries
        self._deadline, self._own_failures = deadline, own_failures
        on_gpu = config.scaling.on_gpu
        self._actor: Any = ray.remote(
            num_cpus=config.scaling.cpus_per_worker,
            num_gpus=gpus if on_gpu else 0,
            runtime_env={"env_vars": hidden_gpus(on_gpu)},
        )(worker)
        self._running: dict[Any, tuple[Any, Work | None]] = {}

    def run(self, works: Sequence[Work]) -> Iterator[tuple[Work, Any]]:
        """Yield each work with what `do` returned, or with how it failed; ends early when time is up.

        Raises UserError, and what failed where no actor can be started. The actors end with the iterator.
        """
        waiting, attempts = list(reversed(works)), Counter[str]()
        try:
            for _ in range(min(self._num_workers, len(waiting))):
                self._start()
            while self._running and (reference := self._next_done()):
                actor, work = self._running.pop(reference)
                outcome = self._outcome(reference)
                name, has_failed = work.name if work else "", isinstance(outcome, Failure)
                if has_failed:
                    attempts[name] += 1
                    is_over = attempts[name] > self._retries or isinstance(outcome, self._own_failures)
                    if work is None and is_over:
                        raise outcome
                    if work is not None and not is_over:
                        waiting.append(work)
                elif work is None:
                    del attempts[""]  # only starts that fail in a row end the pool
                if work is not None and (not has_failed or is_over):
                    yield work, outcome
                if has_failed and (work is None or isinstance(outcome, RayActorError)):
                    ray.kill(actor)
                    if waiting:
                        self._start()
                elif waiting:
                    work = waiting.pop()
                    self._running[actor.do.remote(work)] = (actor, work)
                else:
                    ray.kill(actor)
        finally:
            for actor, _ in self._running.values():
                ray.kill(actor)

    def _start(self) -> None:
        actor = self._actor.remote(*self._arguments)
        self._running[actor.load.remote()] = (actor, None)

    def _next_done(self) -> Any:
        """Wait for a call to end; None if the deadline comes first."""
        patience = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        done, _ = ray.wait(list(self._running), num_returns=1, timeout=patience)
        return done[0] if done else None

    def _outcome(self, reference: Any) -> Any:
        """Return what a call returned, or how it failed; raise a mistake that only the user can mend."""
        try:
            return ray.get(reference)
        except RayError as failure:
            mistake = mistake_in(failure)
            if mistake and not isinstance(mistake, self._own_failures):
                raise mistake from None
            return mistake or failure
