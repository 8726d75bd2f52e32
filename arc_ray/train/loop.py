"""The training loop, to be read aloud: batches, forward, backward, step; log, validate, save. No Ray in it."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed

from arc_ray.config.training import TrainConfig
from arc_ray.errors import UserError
from arc_ray.models.loss import inputs_of
from arc_ray.rows.maker import Batch
from arc_ray.rows.plan import Plan
from arc_ray.seeding import digest64
from arc_ray.train.engine import gradient_norm, set_learning_rate
from arc_ray.train.schedule import accumulation_steps, learning_rate

Metrics = dict[str, float]


@dataclass(frozen=True)
class Hooks:
    """What the loop calls back, once in a while; each is called by every worker, at the same steps."""

    measure: Callable[["Step"], Metrics]
    log: Callable[[int, Metrics], None]
    validate: Callable[[int], Metrics]
    save: Callable[[int], None]
    name_views: Callable[[int], list[str]]
    """Names of the views of a step, for the error about a loss that is not finite."""
    is_ending: Callable[[], bool] = lambda: False
    """Whether a worker's machine was just announced to end; true once, at the same step on every worker."""


class NonFiniteLossError(UserError):
    """The loss is NaN or infinite; the message names step and views. Trying again would only find it again."""


def fit(
    engine: Any,
    batches: Iterator[Batch],
    plan: Plan,
    config: TrainConfig,
    seed: int,
    first_step: int,
    rank: int,
    num_workers: int,
    hooks: Hooks,
) -> None:
    """Train from `first_step` to the end of the plan; `batches` yields this worker's micro-batches in plan order."""
    ending = StepEnding(plan, config, hooks)
    accumulation = accumulation_steps(config, num_workers)
    if first_step == 0:
        hooks.log(0, hooks.validate(0))
    for step in range(first_step, plan.num_steps):
        begun, learned = time.perf_counter(), max(int(ending.learned[step]), 1)
        seed_step(seed, step, rank)
        set_learning_rate(engine, lr := learning_rate(config, step, plan.num_steps))
        loss_sum, stalled = torch.zeros((), dtype=torch.float64, device=engine.device), 0.0
        for _ in range(accumulation):
            asked = time.perf_counter()
            inputs = inputs_of(next(batches), engine.device)
            stalled += time.perf_counter() - asked
            losses, _ = engine(**inputs)
            loss = losses.sum()
            # DeepSpeed divides by accumulation and averages over workers; we want the sum over the global batch
            # divided by the learned tokens of the global batch, which the plan knows.
            engine.backward(loss * (accumulation * num_workers / learned))
            loss_sum += loss.detach()
            engine.step()
        mean_loss = _summed(loss_sum, num_workers) / learned
        ending(Step(step, mean_loss, lr, gradient_norm(engine), time.perf_counter() - begun, stalled))


def seed_step(seed: int, step: int, rank: int) -> None:
    """Let dropout follow from seed, step and rank, so that a run that goes on draws what it would have drawn."""
    torch.manual_seed(digest64(seed, "dropout", step, rank) % 2**63)


@dataclass(frozen=True)
class Step:
    """What one optimizer step (from 0) came to, whichever engine made it."""

    number: int
    loss: float
    """Mean over the learned tokens of the global batch."""
    lr: float
    grad_norm: float
    """Before clipping; NaN where it was not computed."""
    seconds: float
    stalled: float
    """Seconds of it that the worker waited for rows."""


class StepEnding:
    """Logs, validates and saves as far as they are due after a step, the same for both engines."""

    def __init__(self, plan: Plan, config: TrainConfig, hooks: Hooks) -> None:
        self._plan, self._config, self._hooks = plan, config, hooks
        self.learned = plan.learned_per_step()
        quarter = max(1, math.ceil(plan.num_steps / 4))
        self._eval_every, self._save_every = config.eval_every or quarter, config.checkpoint_every or quarter

    def __call__(self, step: Step) -> None:
        """End a step; raises NonFiniteLossError."""
        if not math.isfinite(step.loss):
            names = ", ".join(self._hooks.name_views(step.number)[:20])
            raise NonFiniteLossError(
                f"step {step.number}: the loss is {step.loss}; views: {names};"
                f" try a lower train.lr, or bfloat16 instead of float16"
            )
        done = step.number + 1
        is_last = done == self._plan.num_steps
        metrics = self._hooks.measure(step) if done % self._config.log_every == 0 or is_last else {}
        if done % self._eval_every == 0 or is_last:
            metrics |= self._hooks.validate(done)
        if metrics:
            self._hooks.log(done, metrics)
        if done % self._save_every == 0 or is_last or self._hooks.is_ending():
            self._hooks.save(done)


def _summed(value: torch.Tensor, num_workers: int) -> float:
    if num_workers > 1:
        torch.distributed.all_reduce(value)
    return float(value)
