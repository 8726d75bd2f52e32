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
from arc_ray.plan import Plan
from arc_ray.rows import Batch
from arc_ray.train.engine import gradient_norm, set_learning_rate
from arc_ray.train.schedule import accumulation_steps, learning_rate

Metrics = dict[str, float]


@dataclass(frozen=True)
class Hooks:
    """What the loop calls back, once in a while; each is called by every worker, at the same steps."""

    log: Callable[[int, Metrics], None]
    validate: Callable[[int], Metrics]
    save: Callable[[int], None]
    name_views: Callable[[int], list[str]]
    """Names of the views of a step, for the error about a loss that is not finite."""
    is_ending: Callable[[], bool] = lambda: False
    """Whether a worker's machine was just announced to end; true once, at the same step on every worker."""


class NonFiniteLossError(RuntimeError):
    """The loss is NaN or infinite; the message names step and views."""


def fit(
    engine: Any,
    batches: Iterator[Batch],
    plan: Plan,
    config: TrainConfig,
    first_step: int,
    num_workers: int,
    hooks: Hooks,
) -> None:
    """Train from `first_step` to the end of the plan; `batches` yields this worker's micro-batches in plan order."""
    learned, tokens = plan.learned_per_step(), plan.tokens_per_step()
    accumulation = accumulation_steps(config, num_workers)
    eval_every = config.eval_every or max(1, math.ceil(plan.num_steps / 4))
    save_every = config.checkpoint_every or max(1, math.ceil(plan.num_steps / 4))
    if first_step == 0:
        hooks.log(0, hooks.validate(0))
    for step in range(first_step, plan.num_steps):
        begun = time.perf_counter()
        set_learning_rate(engine, lr := learning_rate(config, step, plan.num_steps))
        loss_sum, stalled = torch.zeros((), dtype=torch.float64, device=engine.device), 0.0
        for _ in range(accumulation):
            asked = time.perf_counter()
            batch = _to_device(next(batches), engine.device)
            stalled += time.perf_counter() - asked
            losses, _ = engine(**batch)
            loss = losses.sum()
            # DeepSpeed divides by accumulation and averages over workers; we want the sum over the global batch
            # divided by the learned tokens of the global batch, which the plan knows.
            engine.backward(loss * (accumulation * num_workers / max(int(learned[step]), 1)))
            loss_sum += loss.detach()
            engine.step()
        mean_loss = _summed(loss_sum, num_workers) / max(int(learned[step]), 1)
        if not math.isfinite(mean_loss):
            raise NonFiniteLossError(
                f"step {step}: the loss is {mean_loss}; views: {', '.join(hooks.name_views(step)[:20])}"
            )
        done = step + 1
        is_last = done == plan.num_steps
        if done % config.log_every == 0 or is_last:
            seconds = time.perf_counter() - begun
            metrics = _step_metrics(
                engine, mean_loss, lr, seconds, stalled, int(tokens[step]), int(learned[step]), plan
            )
            metrics["train/epoch"] = plan.epoch_of_step(done)
            metrics["train/learned_tokens"] = int(learned[:done].sum())
            if done % eval_every == 0 or is_last:
                metrics |= hooks.validate(done)
            hooks.log(done, metrics)
        elif done % eval_every == 0:
            hooks.log(done, hooks.validate(done))
        if done % save_every == 0 or is_last or hooks.is_ending():
            hooks.save(done)


def _step_metrics(
    engine: Any, loss: float, lr: float, seconds: float, stalled: float, tokens: int, learned: int, plan: Plan
) -> Metrics:
    return {
        "train/loss": loss,
        "train/lr": lr,
        "train/grad_norm": gradient_norm(engine),
        "train/tokens_per_second": tokens / seconds,
        "train/learned_tokens_per_second": learned / seconds,
        "train/fill": tokens / (plan.batch_rows * plan.row_tokens),
        "train/step_seconds": seconds,
        "data/stall_share": stalled / seconds,
    }


def _to_device(batch: Batch, device: torch.device) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(values)).to(device).long() for name, values in batch.items()}


def _summed(value: torch.Tensor, num_workers: int) -> float:
    if num_workers > 1:
        torch.distributed.all_reduce(value)
    return float(value)
