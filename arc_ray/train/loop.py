"""The training loop, to be read aloud: batches, forward, backward, step; log, validate, save. No Ray in it."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed

from arc_ray.config.training import TrainConfig
from arc_ray.errors import UserError
from arc_ray.models.loss import inputs_of
from arc_ray.rows.maker import Batch
from arc_ray.rows.plan import Plan
from arc_ray.seeding import digest64
from arc_ray.train.engine import accumulation_steps

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
    scales_loss: bool = False
    """Whether DeepSpeed leaves out a step whose gradient overflows, as in float16, and scales the loss down."""
    is_ending: Callable[[], bool] = lambda: False
    """Whether a worker's machine was just announced to end; true once, at the same step on every worker."""


class NonFiniteLossError(UserError):
    """A loss, a gradient, a weight or a moment is NaN or infinite. Trying again would only find it again.

    The state is not saved: checkpoints hold what was before.
    """


WHAT_MENDS = (
    "no checkpoint holds this state. The same command goes on from the last one, in case memory or a device was at fault;"
    " if this comes again, set another name=..., model.adapter=@<this run> (train.full: model.base) to start from that"
    " checkpoint, and a lower train.lr or train.clip, or bfloat16 instead of float16"
)


def fit(steps: "Steps", batches: Iterator[Batch], num_workers: int) -> None:
    """Train to the end of the plan; `batches` yields this worker's micro-batches in plan order."""
    engine, plan, config = steps.engine, steps.plan, steps.config
    accumulation, learned_per_step = accumulation_steps(config, num_workers), np.maximum(plan.learned_per_step(), 1)
    for step in range(steps.number, plan.num_steps):
        steps.begin()
        learned = int(learned_per_step[step])
        lr = learning_rate(config, step, plan.num_steps)
        for group in engine.optimizer.param_groups:
            group["lr"] = learning_rate(config, step, plan.num_steps, group["peak_lr"])
        loss_sum, stalled = torch.zeros((), dtype=torch.float64, device=engine.device), 0.0
        for _ in range(accumulation):
            asked = time.perf_counter()
            inputs = inputs_of(next(batches), engine.device)
            stalled += time.perf_counter() - asked
            losses, _ = engine(**inputs)
            in_pass = losses.sum()
            # DeepSpeed divides by accumulation and averages over workers; we want the sum over the global batch
            # divided by the learned tokens of the global batch, which the plan knows.
            engine.backward(in_pass * (accumulation * num_workers / learned))
            loss_sum += in_pass.detach()
            engine.step()
        if num_workers > 1:
            torch.distributed.all_reduce(loss_sum)
        steps.end(float(loss_sum) / learned, lr, stalled)


def learning_rate(config: TrainConfig, step: int, num_steps: int, peak: float | None = None) -> float:
    """Return the learning rate of optimizer step `step` (from 0): a linear rise, then linear, cosine or constant.

    Its `peak` is `train.lr` unless given.
    """
    peak = config.lr if peak is None else peak
    warmup = math.ceil(config.warmup * num_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(num_steps - warmup, 1)
    decays = {"linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done)), "constant": 1.0}
    return peak * decays[config.schedule]


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


class Steps:
    """What both engines do around a step: seed its dropout, and then log, validate and save as far as they are due."""

    def __init__(
        self, engine: Any, plan: Plan, config: TrainConfig, seed: int, first_step: int, rank: int, hooks: Hooks
    ) -> None:
        """Validate what training starts from, where it starts; `number` is that of the step to be made next."""
        self.engine, self.plan, self.config, self._hooks = engine, plan, config, hooks
        self._seed, self._rank, self.number = seed, rank, first_step
        quarter = max(1, math.ceil(plan.num_steps / 4))
        self._eval_every, self._save_every = config.eval_every or quarter, config.checkpoint_every or quarter
        if first_step == 0:
            hooks.log(0, hooks.validate(0))
        self._begun = time.perf_counter()

    def begin(self) -> None:
        """Let dropout follow from seed, step and rank, so that a run that goes on draws what it would have drawn."""
        torch.manual_seed(digest64(self._seed, "dropout", self.number, self._rank) % 2**63)

    def end(self, loss: float, lr: float, stalled: float) -> None:
        """End a step; raises NonFiniteLossError."""
        norm = self.engine.get_global_grad_norm()  # None at ZeRO 0 without clipping
        is_lost = norm is not None and not 0 <= float(norm) < math.inf  # DeepSpeed's -1 stands for NaN and infinity
        norm = math.nan if norm is None or is_lost else float(norm)
        step, hooks = Step(self.number, loss, lr, norm, time.perf_counter() - self._begun, stalled), self._hooks
        if not math.isfinite(loss):
            self._refuse(f"the loss is {loss}")
        if is_lost and not hooks.scales_loss:
            self._refuse("the gradient is not finite")
        done = self.number = step.number + 1
        is_last = done == self.plan.num_steps
        metrics = hooks.measure(step) if done % self.config.log_every == 0 or is_last else {}
        if done % self._eval_every == 0 or is_last:
            metrics |= hooks.validate(done)
        if metrics:
            hooks.log(done, metrics)
        if done % self._save_every == 0 or is_last or hooks.is_ending():
            hooks.save(done)
        self._begun = time.perf_counter()

    def _refuse(self, what: str) -> None:
        names = ", ".join(self._hooks.name_views(self.number)[:20])
        raise NonFiniteLossError(f"step {self.number}: {what}; views: {names}; {WHAT_MENDS}")
