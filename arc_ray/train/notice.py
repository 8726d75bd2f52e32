"""The notice that a machine of a run will be taken away, as Ray Train passes it on (`ray drain-node`, spot notices)."""

import os
from collections.abc import Callable


class EndNotice:
    """Tells each worker once, at the same step, that the notice is there."""

    def __init__(self, ask: Callable[[], object | None]) -> None:
        """`ask` is ray.train.get_preemption_info: a barrier of all workers, who all get the same answer."""
        # `arc-ray` switches Ray's watcher off where it starts Ray itself: nobody could give notice there.
        self._listens = os.environ.get("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1") != "0"
        self._ask, self._heard = ask, False

    def is_new(self) -> bool:
        """Tell, once, that the notice is there. All workers must call it equally often."""
        if not self._listens or self._heard:
            return False
        self._heard = self._ask() is not None
        return self._heard
