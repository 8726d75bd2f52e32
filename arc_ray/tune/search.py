"""`search`: Ray Tune runs the trials. What a trial did is in its run folder, not in Tune's state.

A search called again replays what its folders hold: a finished trial reports its recorded validations to the scheduler
within a second, a trial that was cut off reports its own and then trains on. So no pickled state has to survive.
"""

import dataclasses
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.tune
from ray import cloudpickle
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import FIFOScheduler

from arc_ray.cluster.roles import TRIAL_CPUS, reachable_room
from arc_ray.config import Config
from arc_ray.errors import UserError, mistake_in
from arc_ray.runs.cores import usable_cores
from arc_ray.runs.folder import checkpoint_steps, is_finished, read_metrics, run_folder
from arc_ray.storage import Folder
from arc_ray.train.run import run_training
from arc_ray.tune.space import Point, fixed_parts, points, trial_config
from arc_ray.tune.stopping import SCORE, TIME, make_scheduler
from arc_ray.tune.trials import Trial, TrialReader, known_points, merit, read_trial, write_status

WATCH_SECONDS = 3.0
ERROR_LINE = re.compile(r"[\w.]*(Error|Exception)\b")
"""How the line begins that names an error, such as `torch.OutOfMemoryError: ...`."""
MOST_OF_REASON = 500
"""Characters of an error that the table shows."""


def search(
    config: Config, trials: Sequence[Point], progress: Callable[[list[Trial]], None], in_study: bool = False
) -> list[Trial]:
    """Search as the config says: the trials, or as many points like them as Optuna is to propose; return all of them.

    `in_study`: trials of different arms do not stop each other, Optuna learns from each arm by itself, and both see the
    choosing half of the validation tasks only.
    """
    if config.tune.search != "optuna":
        return run_search(config, trials, stop_early=True, progress=progress, in_study=in_study)
    found: list[Trial] = []
    for fixed in fixed_parts(config, trials):
        earlier = list(found)
        found += run_proposed_search(config, fixed, lambda own, earlier=earlier: progress([*earlier, *own]), in_study)
    return found


def run_search(
    config: Config,
    trials: Sequence[Point],
    stop_early: bool,
    progress: Callable[[list[Trial]], None],
    in_study: bool = False,
) -> list[Trial]:
    """Run the trials that have not ended, and return all of them; one that fails is a row that says so.

    `stop_early` false lets every trial run to its end, whatever the config's scheduler; `in_study` is as in `search`.
    """
    started = [trial_config(config, point, config.name) for point in trials]
    if not all(is_finished(run_folder(trial)) for trial in started):
        apart = config.study.compare if in_study else None
        scheduler = make_scheduler(config, trials, started, apart) if stop_early else FIFOScheduler()
        space = {"point": ray.tune.grid_search(list(trials)), "to_the_end": not stop_early, "in_study": in_study}
        read = TrialReader(config, in_study)
        with _watched(lambda: progress([read(point) for point in trials])):
            _fit(config, space, ray.tune.TuneConfig(scheduler=scheduler), len(trials))
    return _ended([read_trial(config, point, in_study) for point in trials], progress)


def run_proposed_search(
    config: Config, fixed: Point, progress: Callable[[list[Trial]], None], in_study: bool
) -> list[Trial]:
    """Run `tune.num_trials` trials at points that Optuna proposes, each with `fixed` added, and return all of them.

    Called again after a fault, the points that have folders are proposed first, then new ones.
    """
    # Not at the top: every trial's process imports this module, and Optuna takes a fifth of a second.
    from arc_ray.tune.proposals import Proposals

    number, known = config.tune.num_trials, _read_known(config, fixed, in_study)
    assert number, "the config checks this"
    if sum(trial.status in ("done", "stopped") for trial in known) < number:
        proposed = [{**point, **fixed} for point in points(config)]
        started = [trial_config(config, point, config.name) for point in proposed]
        known_first = [trial.point for trial in known]
        tune_config = ray.tune.TuneConfig(
            search_alg=Proposals(config.tune.space, fixed, known_first, number, config.seed, SCORE),
            num_samples=number,
            scheduler=make_scheduler(config, proposed, started, None),
        )
        read = TrialReader(config, in_study)
        with _watched(lambda: progress([read(point) for point in known_points(config, fixed)])):
            _fit(config, {"to_the_end": False, "in_study": in_study}, tune_config, number)
    return _ended(_read_known(config, fixed, in_study), progress)


def _ended(found: list[Trial], progress: Callable[[list[Trial]], None]) -> list[Trial]:
    """Show trials for the last time and return them.

    Raises KeyboardInterrupt where Tune came back before all had ended, UserError where all failed and a mistake of the
    user's is among the reasons, RuntimeError where all failed for reasons of ours.
    """
    progress(found)
    if any(trial.status in ("waiting", "running") for trial in found):
        raise KeyboardInterrupt
    if found and all(trial.status == "failed" for trial in found):
        mistakes = list(dict.fromkeys(trial.error for trial in found if trial.is_mistake))
        shown = next(iter(mistakes), found[0].error)
        same = len(mistakes) == 1 and all(trial.is_mistake for trial in found)
        text = f"all {len(found)} trials failed{'' if same else '; the first reason'}: {shown}"
        raise UserError(text) if mistakes else RuntimeError(text)
    return found


def _read_known(config: Config, fixed: Point, in_study: bool) -> list[Trial]:
    return [read_trial(config, point, in_study) for point in known_points(config, fixed)]


def _fit(config: Config, space: dict[str, Any], tune_config: ray.tune.TuneConfig, num_trials: int) -> None:
    """Let Tune run trials: at most so many at once that all of them get their workers."""
    at_once = min(max_concurrent(config), num_trials)
    ray.tune.Tuner(
        ray.tune.with_resources(_train_trial, {"CPU": TRIAL_CPUS}),
        param_space={"config": config, "at_once": at_once, **space},
        tune_config=dataclasses.replace(
            tune_config, metric=SCORE, mode="max", max_concurrent_trials=at_once, reuse_actors=False
        ),
        run_config=ray.tune.RunConfig(
            name="search", storage_path=str(_scratch(config)), callbacks=[_Ends(config)], verbose=0
        ),
    ).fit()


def max_concurrent(config: Config) -> int:
    """Derive how many trials fit: all their workers and one data task each, so that none waits for another for ever."""
    if config.tune.max_concurrent:
        return config.tune.max_concurrent
    scaling, room = config.scaling, reachable_room()
    beside = 0.0 if room.is_divided() else scaling.data_cpus
    return max(1, room.holds(scaling.cpus_per_worker + beside, float(scaling.on_gpu)) // scaling.workers[0])


def _train_trial(parameters: dict[str, Any]) -> None:
    """Run one trial in its Tune actor: replay what its folder holds, then train."""
    point: Point = parameters["point"]
    config = _sharing_cores(trial_config(parameters["config"], point, parameters["config"].name), parameters["at_once"])
    folder = run_folder(config)
    report = partial(scored, parameters["config"], folder, in_study=parameters["in_study"])
    about = folder.read_json("trial.json")
    has_ended = is_finished(folder) or bool(about and about["status"] == "stopped" and not parameters["to_the_end"])
    steps = checkpoint_steps(folder)
    last = steps[-1] if steps else -1
    for record in read_metrics(folder):
        if "eval/solved" in record and (has_ended or record["step"] <= last):
            ray.tune.report(report(record))
    if has_ended:
        return
    write_status(folder, point, "running")
    run_training(config, callbacks=[_Report(report)], command="trial")


def _sharing_cores(config: Config, trials_at_once: int) -> Config:
    """Give a trial on CPUs its share of the machine's threads: two that both take all cores run at a fraction of it."""
    if config.scaling.threads or config.scaling.on_gpu:
        return config
    share = max(1, usable_cores() // trials_at_once)
    return config.model_copy(update={"scaling": config.scaling.model_copy(update={"threads": share})})


def scored(config: Config, folder: Folder, record: dict[str, Any], in_study: bool) -> dict[str, Any]:
    """Add what the scheduler and Optuna compare to a trial's validation: its merit as one number."""
    value, tie = merit(config, folder, record, in_study)
    return {TIME["tokens"]: 0.0, TIME["epochs"]: 0.0, **record, SCORE: value + 1e-3 * tie}


class _Report(TuneReportCallback):
    """Passes each validation on to Tune, with the score the scheduler compares."""

    def __init__(self, report: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        super().__init__()
        self._report = report

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Report rank 0's record."""
        super().after_report(run_context, [self._report(metrics[0])], checkpoint)


class _Ends(ray.tune.Callback):
    """Notes in its folder how each trial ended, when it ends: a driver that dies later loses nothing."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """It ran to its end, or the scheduler stopped it."""
        folder, point = self._place(trial)
        write_status(folder, point, "done" if is_finished(folder) else "stopped")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """It failed; the search goes on."""
        folder, point = self._place(trial)
        mistake = _mistake_of(trial)
        reason = " ".join(str(mistake).split()) if mistake else reason_of(trial.error_file)
        write_status(folder, point, "failed", reason, is_mistake=mistake is not None)

    def _place(self, trial: Any) -> tuple[Folder, Point]:
        point = trial.config["point"]
        return run_folder(trial_config(self._config, point, self._config.name)), point


@contextmanager
def _watched(look: Callable[[], None]) -> Iterator[None]:
    """Look at the trials' folders now and then while Tune runs: a callback of Tune's would have to be pickled."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(WATCH_SECONDS):
            look()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def _mistake_of(trial: Any) -> UserError | None:
    """Return the user's mistake that a trial failed by, if any. Tune's `get_error` looks where files are copied to later."""
    file = trial.pickled_error_file
    return mistake_in(cloudpickle.loads(Path(file).read_bytes())) if file and Path(file).exists() else None


def reason_of(error_file: str | None) -> str:
    """Take from Tune's error.txt the last error, with all its lines in one; traces and earlier causes stand above it."""
    text = Path(error_file).read_text() if error_file and Path(error_file).exists() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    last = max((i for i, line in enumerate(lines) if ERROR_LINE.match(line)), default=len(lines) - 1)
    return " ".join(lines[last:])[:MOST_OF_REASON] or "no reason given"


def _scratch(config: Config) -> Path:
    """Tune's own files: of no use after the search, and on the driver's disk because Tune only reads them there."""
    folder = Folder.at(config.storage) / config.name
    return folder.local_path() / "tune" if folder.is_local else Path("/tmp/arc_ray_tune") / config.name
