"""The learning rate of each step."""

import pytest

from arc_ray.config.training import TrainConfig
from arc_ray.train.loop import learning_rate


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
