"""What a training worker makes of Ray's news that a machine will be taken away."""

import pytest

from arc_ray.train.notice import EndNotice


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
    notice = EndNotice(ask)
    assert [notice.is_new() for _ in range(4)] == told
    assert len(asked) == (3 if watcher is None else 0)
