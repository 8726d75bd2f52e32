"""Actors that hold a model and do one work after another; one that is lost is replaced, and its work done again."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from arc_ray.cluster.roles import hidden_gpus
from arc_ray.config import Config
from arc_ray.errors import UserError, mistake_in
from arc_ray.evaluate.questions import Work


def outcomes(
    config: Config,
    worker: type,
    arguments: tuple[Any, ...],
    works: Sequence[Work],
    num_workers: int,
    gpus: float,
    retries: int = 3,
    deadline: float = math.inf,
    own_failures: tuple[type[UserError], ...] = (),
) -> Iterator[tuple[Work, Any]]:
    """Do works by `worker(*arguments)` in `num_workers` actors, with a share of a GPU where the config is for GPUs; yield
    each with what `worker.do` returned, or with how it failed. The actors end with the iterator.

    An actor first calls `worker.load`, since Ray does not say why a constructor fails.
    A work, and a start of an actor, is tried again `retries` times before its fault is taken for one that will not pass.
    After `deadline` (time.monotonic) no result is waited for. Mistakes of the kinds `own_failures` are those of one work,
    which is not tried again; all others are raised, and what failed where no actor can be started.
    """
    if not works:
        return
    start, running = _starter(config, worker, arguments, gpus), dict[Any, tuple[Any, Work | None]]()
    waiting, attempts = list(reversed(works)), Counter[str]()
    try:
        for _ in range(min(num_workers, len(waiting))):
            running |= start()
        while running and (reference := _next_done(running, deadline)):
            actor, work = running.pop(reference)
            outcome = _outcome(reference, own_failures)
            name, has_failed = work.name if work else "", isinstance(outcome, RayError | UserError)
            attempts[name] = attempts[name] + 1 if has_failed else 0  # only starts that fail in a row end the pool
            is_over = not has_failed or attempts[name] > retries or isinstance(outcome, own_failures)
            if work and is_over:
                yield work, outcome
            elif work:
                waiting.append(work)
            elif has_failed and is_over:
                raise outcome
            is_lost = has_failed and (work is None or isinstance(outcome, RayActorError))
            if is_lost or not waiting:
                ray.kill(actor)
            if is_lost and waiting:
                running |= start()
            elif waiting:
                work = waiting.pop()
                running[actor.do.remote(work)] = (actor, work)
    finally:
        for actor, _ in running.values():
            ray.kill(actor)


def _starter(config: Config, worker: type, arguments: tuple[Any, ...], gpus: float) -> Callable[[], dict[Any, Any]]:
    """Return what starts an actor, which has no work until it has loaded: its call to `load` -> the actor, None."""
    on_gpu = config.scaling.on_gpu
    actors: Any = ray.remote(
        num_cpus=config.scaling.cpus_per_worker,
        num_gpus=gpus if on_gpu else 0,
        runtime_env={"env_vars": hidden_gpus(on_gpu)},
    )(worker)
    shared = list(map(ray.put, arguments))

    def start() -> dict[Any, Any]:
        actor = actors.remote(*shared)
        return {actor.load.remote(): (actor, None)}

    return start


def _next_done(running: Iterable[Any], deadline: float) -> Any:
    """Wait for a call to end; None if the deadline comes first."""
    patience = None if deadline == math.inf else max(0.0, deadline - time.monotonic())
    done, _ = ray.wait(list(running), num_returns=1, timeout=patience)
    return done[0] if done else None


def _outcome(reference: Any, own_failures: tuple[type[UserError], ...]) -> Any:
    """Return what a call returned, or how it failed; raise a mistake that only the user can mend."""
    try:
        return ray.get(reference)
    except RayError as failure:
        mistake = mistake_in(failure)
        if mistake and not isinstance(mistake, own_failures):
            raise mistake from None
        return mistake or failure
