"""`Search`: Ray Tune runs the trials. What a trial did is in its run folder, not in Tune's state.

A search called again replays what its folders hold: a finished trial reports its recorded validations to the scheduler
within a second, a trial that was cut off reports its own and then trains on. So no pickled state has to survive.
"""

import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import ray
import ray.tune
from ray.tune.schedulers import FIFOScheduler
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from arc_ray.cluster.roles import reachable_room
from arc_ray.config import Config
from arc_ray.errors import StorageError, UserError, unwrapped
from arc_ray.progress import watched
from arc_ray.rows.plan import Plan
from arc_ray.rows.stream import Preparer, settle_data_scheduling
from arc_ray.runs.folder import is_finished, run_folder
from arc_ray.seeding import digest64
from arc_ray.train.run import worker_environment
from arc_ray.tune.space import Point, fixed_parts, points, trial_folder
from arc_ray.tune.stopping import SCORE, Ends, final_errors, make_scheduler
from arc_ray.tune.trainable import train_trial, trial_resources
from arc_ray.tune.trials import Trial, TrialReader, known_points

WATCH_SECONDS = 3.0
TUNE, SEARCH = "tune", "search"
"""Folder of Tune's own files within a run's, and the name of its experiment."""


class Search:
    """Runs trials, one set of points after another, and tells `show` of all of them; one that fails is a row that says so.

    `in_study`: trials of different arms do not stop each other, Optuna learns from each arm by itself, and both see the
    choosing half of the validation tasks only.
    """

    def __init__(self, config: Config, show: Callable[[list[Trial]], None], in_study: bool = False) -> None:
        self.config, self.show, self.in_study = config, show, in_study
        self.ended: list[Trial] = []
        """The trials of the sets of points that are done."""
        self._read = TrialReader(config, in_study)

    @cached_property
    def _preparer(self) -> Any:
        """A `Preparer` on this node, which stays as long as the search; killed, it comes back: every trial asks it."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        again = {"max_restarts": -1, "max_task_retries": -1}
        return ray.remote(Preparer).options(num_cpus=0, scheduling_strategy=here, **again).remote()

    def plan(self, config: Config) -> Plan:
        """Make the plan that a trial of this config would have; the trials that have it make it no more. Raises UserError."""
        with unwrapped():
            return ray.get(self._preparer.plan.remote(config))

    def run(self, trials: Sequence[Point]) -> list[Trial]:
        """Search as the config says: the trials, or as many points like them as Optuna is to propose; return all of them.

        Raises as `run_points`.
        """
        if self.config.tune.search != "optuna":
            return self.run_points(trials)
        return [trial for fixed in fixed_parts(self.config, trials) for trial in self._run_proposed(fixed)]

    def run_points(self, trials: Sequence[Point], stop_early: bool = True) -> list[Trial]:
        """Run those trials that have not ended, and return all; without `stop_early` each to its end.

        Raises KeyboardInterrupt where Tune came back before all had ended, StorageError where one could not end because of
        the storage, UserError where all failed and a mistake of the user's is among the reasons, RuntimeError where all
        failed for reasons of ours.
        """
        # A driver may die after a trial has written its result, and before `Ends` has noted that.
        if not all(is_finished(trial_folder(self.config, p)) and self._read(p).status == "done" for p in trials):
            scheduler = FIFOScheduler()
            if stop_early:
                apart = self.config.study.compare if self.in_study else None
                scheduler = make_scheduler(self.config, trials, apart, self.plan)
            with self._watched(lambda: trials):
                space = {"point": ray.tune.grid_search(list(trials)), "to_the_end": not stop_early}
                self._fit(space, len(trials), scheduler=scheduler)
        return self._end(trials)

    def _run_proposed(self, fixed: Point) -> list[Trial]:
        """Run `tune.num_trials` trials at points that Optuna proposes, each with `fixed` added, and return all of them.

        Called again after a fault, the points that have folders are proposed first, then new ones.
        """
        # Not at the top: every trial's process imports this module, and Optuna takes a fifth of a second.
        from arc_ray.tune.proposals import Proposals

        config, number, known = self.config, self.config.tune.num_trials, known_points(self.config, fixed)
        assert number, "the config checks this"
        if sum(self._read(point).status in ("done", "stopped") for point in known) < number:
            proposed = [{**point, **fixed} for point in points(config)]
            search = Proposals(config.tune.space, fixed, known, number, config.seed, SCORE)
            scheduler = make_scheduler(config, proposed, None, self.plan)
            with self._watched(lambda: known_points(config, fixed)):
                self._fit({"to_the_end": False}, number, scheduler=scheduler, search_alg=search, num_samples=number)
        return self._end(known_points(config, fixed))

    def _fit(self, space: dict[str, Any], num_trials: int, **how: Any) -> None:
        """Let Tune run trials: at most so many at once that all of them get their workers."""
        config, at_once = self.config, min(max_concurrent(self.config), num_trials)
        # A trial that is stopped early first writes its last checkpoint; Tune would wait 2 s before it gives its process up.
        environment = {**worker_environment(config), "TUNE_FUNCTION_THREAD_TIMEOUT_S": "600"}
        trainable = ray.tune.with_parameters(train_trial, preparer=self._preparer, environment=environment)
        settle_data_scheduling()
        tuner = ray.tune.Tuner(
            ray.tune.with_resources(trainable, trial_resources),
            param_space={"config": config, "at_once": at_once, "in_study": self.in_study, **space},
            tune_config=ray.tune.TuneConfig(
                metric=SCORE, mode="max", max_concurrent_trials=at_once, reuse_actors=True, **how
            ),
            run_config=ray.tune.RunConfig(
                name=SEARCH,
                storage_path=str(_scratch(config)),
                callbacks=[Ends(config)],
                failure_config=ray.tune.FailureConfig(max_failures=config.train.max_failures),
                verbose=0,
            ),
        )
        with final_errors():
            tuner.fit()
        if not (folder := run_folder(config)).is_local:
            filesystem, path = (folder / TUNE).filesystem()
            pafs.copy_files(str(_scratch(config)), path, destination_filesystem=filesystem)

    def _watched(self, begun: Callable[[], Sequence[Point]]) -> AbstractContextManager[None]:
        """Look at the trials' folders now and then while Tune runs: a callback of Tune's would have to be pickled."""
        return watched(lambda: self.show([*self.ended, *map(self._read, begun())]), WATCH_SECONDS)

    def _end(self, trials: Sequence[Point]) -> list[Trial]:
        """Show trials for the last time and return them."""
        found = [self._read(point) for point in trials]
        self.ended += found
        self.show(self.ended)
        if unfinished := [trial for trial in found if trial.status in ("waiting", "running")]:
            for reason in filter(None, (trial.error for trial in unfinished)):
                raise StorageError(reason)
            raise KeyboardInterrupt
        if found and all(trial.status == "failed" for trial in found):
            mistakes = list(dict.fromkeys(trial.error for trial in found if trial.is_mistake))
            shown = next(iter(mistakes), found[0].error)
            same = len(mistakes) == 1 and all(trial.is_mistake for trial in found)
            text = f"all {len(found)} trials failed{'' if same else '; the first reason'}: {shown}"
            raise UserError(text) if mistakes else RuntimeError(text)
        return found


def max_concurrent(config: Config) -> int:
    """Derive how many trials fit: all their workers and one data task each, so that none waits for another for ever."""
    if config.tune.max_concurrent:
        return config.tune.max_concurrent
    scaling, room = config.scaling, reachable_room()
    beside = 0.0 if room.is_divided() else scaling.data_cpus
    return max(1, room.holds(scaling.cpus_per_worker + beside, float(scaling.on_gpu)) // scaling.workers[0])


def open_results(config: Config) -> ray.tune.ResultGrid:
    """Open what Ray Tune keeps of a search, or of a study's last one, for code that is written for Ray Tune.

    It unpickles files: open only folders that you trust. Raises UserError where there are none.
    """
    folder = run_folder(config) / TUNE
    if not folder.exists(SEARCH):
        raise UserError(f"{folder.uri}: Ray Tune has written nothing there; run `arc-ray tune` or `study` first")
    return ray.tune.Tuner.restore(str(folder.on_this_node() / SEARCH), train_trial).get_results()


def _scratch(config: Config) -> Path:
    """Tune's own files, on the driver's disk because Tune only reads them there; `open_results` opens them.

    Two users, and two studies of one name in different buckets, do not meet there.
    """
    folder = run_folder(config)
    if folder.is_local:
        return folder.local_path() / TUNE
    return Path(tempfile.gettempdir(), f"arc_ray-{os.getuid()}") / f"tune-{digest64(folder.uri):016x}"
