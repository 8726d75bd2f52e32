"""Processes that hold a model and do one work after another; one that is lost is replaced, and its work done again.

They are kept for the next model: to start one and import what a model needs takes five seconds.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from arc_ray.cluster.preflight import num_replicas
from arc_ray.cluster.roles import hidden_gpus, reachable_room
from arc_ray.config import Config
from arc_ray.errors import UserError, mistake_in
from arc_ray.evaluate.questions import Work
from arc_ray.prompts.codec import Codec
from arc_ray.storage import Folder


class Host:
    """A process for one worker after another; made by an actor's first call, since Ray does not say why a constructor fails."""

    _worker: Any = None

    def become(self, worker: type, *arguments: Any) -> None:
        """Hold this worker from now on, loaded; the one before is gone first, and what it set for the whole process."""
        import torch  # it takes seconds, and the driver needs none of it

        from arc_ray.train.alone import free_memory

        self._worker = None
        free_memory()
        torch.set_float32_matmul_precision("highest")
        self._worker = worker(*arguments)
        self._worker.load()

    def do(self, work: Work) -> Any:
        """Let the worker do a work."""
        return self._worker.do(work)


class Hosts:
    """Processes that are kept, within a `with`, as long as what comes next asks for the same resources."""

    def __init__(self) -> None:
        self._idle: list[Any] = []
        self._options: dict[str, Any] = {}

    def __enter__(self) -> "Hosts":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """End all that have nothing to do, so that their resources are free."""
        while self._idle:
            ray.kill(self._idle.pop())

    def start(self, config: Config, gpus: float, worker: type, arguments: Sequence[Any]) -> dict[Any, Any]:
        """Have a host become this worker; return {the call: (the host, no work, a name for how often it failed)}.

        It has a worker's resources. Hosts with others end: they hold what new ones would wait for. New ones share a name,
        so that a few failures in a row end the pool; those that were kept may all have died with their node.
        """
        on_gpu = config.scaling.on_gpu
        options = {
            "num_cpus": config.scaling.cpus_per_worker,
            "num_gpus": gpus if on_gpu else 0,
            "runtime_env": {"env_vars": hidden_gpus(on_gpu)},
        }
        if options != self._options:
            self.end()
            self._options = options
        was_kept = bool(self._idle)
        host: Any = self._idle.pop() if was_kept else ray.remote(Host).options(**options).remote()
        return {host.become.remote(worker, *arguments): (host, None, str(host) if was_kept else "")}

    def keep(self, host: Any) -> None:
        """Take back a host that has nothing to do any more."""
        self._idle.append(host)


def outcomes(
    hosts: Hosts,
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
    """Do works by `worker(*arguments)` in hosts, with `gpus` each where the config is for GPUs; yield each work with what
    `worker.do` returned, or with how it failed. Hosts with nothing to do go back to `hosts`.

    A work, and a start, is tried again `retries` times before its fault is taken for one that will not pass. After
    `deadline` (time.monotonic) no result is waited for. Mistakes of the kinds `own_failures` are those of one work, which
    is not tried again; all others are raised, and what failed where no host can be started.
    """
    start, running = partial(hosts.start, config, gpus, worker, list(map(ray.put, arguments))), dict[Any, Any]()
    waiting, attempts, left = list(reversed(works)), Counter[str](), len(works)
    try:
        for _ in range(min(num_workers, len(waiting))):
            running |= start()
        # A start that is not needed any more is not waited for: kept hosts may hold what it needs.
        while left and running and (reference := _next_done(running, deadline)):
            host, work, name = running.pop(reference)
            outcome = _outcome(reference, own_failures)
            has_failed = isinstance(outcome, RayError | UserError)
            attempts[name] = attempts[name] + 1 if has_failed else 0
            is_over = not has_failed or attempts[name] > retries or isinstance(outcome, own_failures)
            if work and is_over:
                left -= 1
                yield work, outcome
            elif work:
                waiting.append(work)
            elif has_failed and is_over:
                raise outcome
            if has_failed and (work is None or isinstance(outcome, RayActorError)):
                ray.kill(host)
                if waiting:
                    running |= start()
            elif waiting:
                work = waiting.pop()
                running[host.do.remote(work)] = host, work, work.name
            else:
                hosts.keep(host)
    finally:
        for host, *_ in running.values():
            ray.kill(host)


def answer_all(
    hosts: Hosts,
    config: Config,
    folder: Folder,
    codec: Codec,
    works: Sequence[Work],
    progress: Callable[[int, int], None],
) -> None:
    """Do every work whose file is not there yet; `progress` gets (done, total). Raises UserError if a worker met one."""
    from arc_ray.evaluate.answering import Answerer  # with torch and transformers, seconds

    there = set(folder.names())
    missing = [work for work in works if work.name not in there]
    done = len(works) - len(missing)
    progress(done, len(works))
    if not missing:
        return
    replicas, arguments = num_replicas(config, reachable_room()), (config, folder, codec)
    # vLLM wants a GPU for itself, and gives its memory back only when its process ends.
    keeps_processes = config.evaluate.backend != "vllm"
    if not keeps_processes:
        hosts.end()
    answered = outcomes(hosts, config, Answerer, arguments, missing, replicas, config.evaluate.gpus)
    for number, (_, outcome) in enumerate(answered, done + 1):
        if isinstance(outcome, Exception):
            raise outcome
        progress(number, len(works))
    if not keeps_processes:
        hosts.end()


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
