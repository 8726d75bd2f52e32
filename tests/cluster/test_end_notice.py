"""What a training worker makes of Ray's news that a machine will be taken away."""

import pytest
import torch

from arc_ray.train import worker
from arc_ray.train.worker import ASK_SECONDS, EndNotice


@pytest.mark.parametrize(("watcher", "told"), [(None, [False, False, True, False]), ("0", [False] * 4)])
def test_the_notice_is_told_once(watcher: str | None, told: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a checkpoint at every step after a notice, and a barrier at every step where nobody could give one."""
    answers = [None, None, object(), object()]
    asked: list[int] = []

    def ask() -> object | None:
        asked.append(len(asked))
        return answers[len(asked) - 1]

    monkeypatch.delenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", raising=False)
    if watcher is not None:
        monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", watcher)
    monkeypatch.setattr(worker, "ASK_SECONDS", 0.0)
    notice = EndNotice(ask, 1, torch.device("cpu"))
    assert [notice.is_new() for _ in range(4)] == told
    assert len(asked) == (3 if watcher is None else 0)


def test_workers_ask_together_and_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a barrier of all workers at every step, and one that a worker whose clock is behind does not come to."""
    monkeypatch.delenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", raising=False)
    clock, votes_of_others, asked = [0.0], [0.0], []
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    monkeypatch.setattr("torch.distributed.all_reduce", lambda votes: votes.add_(votes_of_others[0]))
    notice = EndNotice(lambda: asked.append(clock[0]), 2, torch.device("cpu"))
    for clock[0], votes_of_others[0] in [(1.0, 0), (2.0, 1), (3.0, 0), (2.0 + ASK_SECONDS, 0), (3.0 + ASK_SECONDS, 0)]:
        assert not notice.is_new()
    assert asked == [2.0, 2.0 + ASK_SECONDS]
