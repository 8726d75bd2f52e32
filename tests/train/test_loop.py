"""The learning rate of each step, and what ends a run rather than being saved."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
from plans import planned

from arc_ray.config.training import TrainConfig
from arc_ray.errors import UserError, mistake_in
from arc_ray.train.loop import Hooks, NonFiniteLossError, Steps, learning_rate


def rates(num_steps: int, **config: object) -> list[float]:
    train = TrainConfig(lr=1.0, **config)  # pyright: ignore
    return [learning_rate(train, step, num_steps) for step in range(num_steps)]


def test_rates_written_out():
    """Would catch a first step without learning, and a decay that begins before the warm-up is over."""
    assert rates(8, warmup=0.25, schedule="linear") == pytest.approx([0.5, 1.0, 1.0, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    assert rates(6, warmup=0.2, schedule="constant") == pytest.approx([0.5, 1.0, 1.0, 1.0, 1.0, 1.0])
    assert rates(4, warmup=0.0, schedule="cosine") == pytest.approx([1.0, 0.853553, 0.5, 0.146447], abs=1e-6)
    assert rates(4, warmup=1.0) == pytest.approx([0.25, 0.5, 0.75, 1.0])


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 19, 20, 21, 1000])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.5, 1.0])
def test_every_step_learns_and_the_peak_is_reached(schedule: str, num_steps: int, warmup: float):
    """Would catch a run of one step at a rate of 0, and a last step that does nothing."""
    found = rates(num_steps, schedule=schedule, warmup=warmup)
    assert all(0 < rate <= 1 for rate in found)
    assert max(found) == pytest.approx(1.0)
    peak = found.index(max(found))
    assert found[: peak + 1] == sorted(found[: peak + 1])
    assert found[peak:] == sorted(found[peak:], reverse=True)


def test_the_rate_scales_with_its_peak():
    assert learning_rate(TrainConfig(lr=3e-4), 0, 1) == 3e-4


def steps_of(norm: float | None, saved: list[int], scales_loss: bool = False) -> Steps:
    """Steps, each with a checkpoint, of an engine whose gradients have this norm."""
    engine: Any = SimpleNamespace(get_global_grad_norm=lambda: norm)
    hooks = Hooks(lambda _: {}, lambda *_: None, lambda _: {}, saved.append, lambda step: [f"a/p{step}"], scales_loss)
    return Steps(engine, planned(), TrainConfig(checkpoint_every=1), 0, 0, 0, hooks)


@pytest.mark.parametrize("norm", [math.nan, math.inf, -1.0])
def test_a_gradient_that_is_not_finite_ends_the_run_before_its_state_is_saved(norm: float) -> None:
    """Catches weights of NaN that take the place of the last good checkpoint, since the loss before them was finite.

    DeepSpeed writes -1 for the norm of such gradients.
    """
    saved: list[int] = []
    steps_of(1.0, saved).end(2.0, 1e-3, 0.0)
    assert saved == [1]
    with pytest.raises(NonFiniteLossError, match=r"step 0: the gradient is not finite; views: a/p0; no checkpoint"):
        steps_of(norm, saved).end(2.0, 1e-3, 0.0)
    with pytest.raises(NonFiniteLossError, match=r"step 0: the loss is nan; views: a/p0"):
        steps_of(1.0, saved).end(math.nan, 1e-3, 0.0)
    assert saved == [1]


def test_float16_leaves_out_steps_that_overflow_until_its_scale_cannot_fall() -> None:
    """Catches a run in float16 that ends at its first step, whose loss is scaled too far up, and a traceback at its end."""
    saved: list[int] = []
    steps_of(math.inf, saved, scales_loss=True).end(2.0, 1e-3, 0.0)
    steps_of(None, saved).end(2.0, 1e-3, 0.0)  # ZeRO 0 without clipping knows no norm
    assert saved == [1, 1]
    raised = Exception("Current loss scale already at minimum - cannot decrease scale anymore. Exiting run.")
    assert isinstance(mistake := mistake_in(raised), UserError)
    assert "take bfloat16" in str(mistake)
