"""Peak memory of a training worker, measured, against what `arc-ray check` says of it.

    python tests/benchmarks/bench_memory.py            # the table: models x rows x ZeRO stages, on the CPU

Each case trains two steps in processes of its own. A worker first trains a tiny model by the same code, so that
libraries, thread pools and buffers are there; then peak resident memory (VmHWM, reset before) counts from there.
Large blocks are given back to the system at once (MALLOC_MMAP_THRESHOLD_), so resident memory is what tensors need.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from typing import Any, Literal

THREADS = 1
TOLERATED = (0.85, 1.15)


@dataclass(frozen=True)
class Case:
    """A model, its rows, and how it is trained."""

    hidden: int
    layers: int
    row_tokens: int
    rows: int = 1
    stage: int = 2
    workers: int = 1
    full: bool = False
    checkpointing: bool = False
    dtype: str = "float32"
    accumulation: int = 2
    vocabulary: int = 32768
    learned_share: float = 0.25
    quantize: Literal["nf4"] | None = None
    embeddings: Literal["none", "lora", "full"] = "none"
    optimizer: Literal["adamw", "adamw_8bit", "muon"] = "adamw"
    base: str | None = None
    """A real model, in place of one from random weights of this shape; its `vocabulary` is cut where that is 0."""
    steps: int = 2

    def describe(self) -> str:
        """Say what is special about the case."""
        how = "all parameters" if self.full else "LoRA"
        recomputed = ", checkpointed" if self.checkpointing else ""
        special = f", {self.quantize}" if self.quantize else ""
        special += f", embeddings {self.embeddings}" if self.embeddings != "none" else ""
        special += f", {self.optimizer}" if self.optimizer != "adamw" else ""
        cut = f", {self.vocabulary or 'only cells'} known"
        special += cut if self.vocabulary != Case.vocabulary else ""
        model = self.base or f"{self.layers} layers of {self.hidden}"
        return (
            f"{model}, {how}, {self.dtype}{special}{recomputed}; {self.rows} x {self.row_tokens}"
            f" tokens, ZeRO {self.stage}, {self.workers} worker(s)"
        )


CASES = [
    Case(384, 4, 1024),
    Case(384, 4, 2048, stage=0),
    Case(384, 4, 2048, stage=1),
    Case(384, 4, 2048, stage=3),
    Case(384, 4, 2048, stage=2, workers=2),
    Case(384, 4, 2048, stage=3, workers=2),
    Case(384, 4, 1024, rows=2, checkpointing=True),
    Case(384, 4, 512, full=True),
    Case(384, 4, 512, full=True, stage=0),
    Case(384, 4, 512, full=True, stage=1, workers=2),
    Case(384, 4, 512, full=True, stage=2, workers=2),
    Case(384, 4, 512, full=True, stage=3, workers=2),
    Case(384, 4, 1024, dtype="bfloat16"),
    Case(384, 4, 512, dtype="bfloat16", full=True),
    Case(384, 4, 512, dtype="bfloat16", full=True, workers=2),
    Case(384, 4, 512, dtype="bfloat16", full=True, stage=3, workers=2),
    Case(1024, 4, 4096, learned_share=0.1),
    Case(384, 4, 2048, vocabulary=483),
    Case(1024, 8, 512, quantize="nf4", vocabulary=483),
    Case(1024, 8, 512, quantize="nf4", stage=0, checkpointing=True),
    Case(1024, 8, 512, quantize="nf4", stage=1, dtype="bfloat16"),
    Case(1024, 8, 512, quantize="nf4", workers=2),
    Case(0, 0, 2048, base="smollm2", steps=1, accumulation=1),
    Case(0, 0, 2048, base="smollm2", steps=1, accumulation=1, vocabulary=0),
    Case(0, 0, 2048, base="smollm2", steps=1, accumulation=1, quantize="nf4"),
    Case(0, 0, 2048, base="smollm2", steps=1, accumulation=1, quantize="nf4", vocabulary=0),
    Case(384, 4, 1024, stage=1, embeddings="full"),
    Case(384, 4, 1024, stage=1, embeddings="full", vocabulary=483),
    Case(384, 4, 1024, stage=1, embeddings="lora"),
    Case(384, 4, 1024, stage=1, optimizer="adamw_8bit"),
    Case(384, 4, 1024, stage=0, embeddings="full", optimizer="adamw_8bit"),
    Case(384, 4, 512, full=True, stage=0, optimizer="muon"),
    Case(384, 4, 1024, stage=0, dtype="bfloat16", embeddings="full", optimizer="muon"),
]


def main() -> None:
    """Print measured and estimated peaks, case by case; exit 1 if an estimate is off by more than 15 %."""
    cases = [CASES[int(word)] for word in sys.argv[1:]] or CASES
    ratios = []
    for case in cases:
        measured, estimated = measure(case), estimate(case)
        ratios.append(estimated["total"] / measured["peak"])
        parts = ", ".join(f"{name} {number / 2**20:.0f}" for name, number in estimated.items() if name != "total")
        print(f"{CASES.index(case):2d} {case.describe()}", flush=True)
        print(f"   measured {measured['peak'] / 2**20:.0f} MiB, estimated {ratios[-1]:.2f} of it ({parts})", flush=True)
        print(f"   {measured['tokens'] / measured['cpu']:.1f} tokens a second of a core", flush=True)
    print(f"{len(cases)} cases: estimates are {min(ratios):.2f} to {max(ratios):.2f} of what was measured")
    sys.exit(not TOLERATED[0] <= min(ratios) <= max(ratios) <= TOLERATED[1])


def measure(case: Case) -> dict[str, Any]:
    """Train a case in processes of its own and return bytes, the peak and what was there before the first step, and the
    tokens and CPU seconds of the steps."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(case.workers)}
    shared |= {"LOCAL_WORLD_SIZE": str(case.workers), "OMP_NUM_THREADS": str(THREADS), "OMP_WAIT_POLICY": "PASSIVE"}
    shared |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1", "DS_ACCELERATOR": "cpu"}
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, "--worker", json.dumps(asdict(case))],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(case.workers)
    ]
    outputs = [worker.communicate(timeout=1700) for worker in workers]
    assert all(worker.returncode == 0 for worker in workers), outputs[0][1]
    return json.loads(outputs[0][0].splitlines()[-1])


def estimate(case: Case) -> dict[str, int]:
    """Return what `arc-ray check` would say, in bytes."""
    import torch

    from arc_ray.models.build import adapted
    from arc_ray.models.memory import footprint, simulate_pass

    model_config, _, tokenizer = configs(case)
    base = base_of(model_config, tokenizer, "meta")
    with torch.device("meta"):
        skeleton = adapted(base, model_config, [], case.full)
    skeleton = skeleton.to(getattr(torch, case.dtype))
    found = simulate_pass(skeleton, case.rows, case.row_tokens, int(case.row_tokens * case.learned_share) * case.rows)
    estimated = footprint(skeleton, found, case.stage, case.workers, optimizer=case.optimizer)
    return asdict(estimated) | {"total": estimated.total}


def configs(case: Case) -> tuple[Any, Any, Any]:
    """The model's and the training's config, and a tokenizer of the case's vocabulary size."""
    from arc_ray.config.model import LoraConfig, ModelConfig, ScratchConfig
    from arc_ray.config.training import TrainConfig

    heads = case.hidden // 64
    sizes = {"hidden_size": case.hidden, "layers": case.layers, "heads": heads, "intermediate_size": 3 * case.hidden}
    model = ModelConfig(
        base=case.base,
        scratch=None if case.base else ScratchConfig.model_validate(sizes),
        vocabulary=None if case.vocabulary else "cells",
        dtype=case.dtype,
        gradient_checkpointing=case.checkpointing,
        lora=LoraConfig(r=32, train_embeddings=case.embeddings),
        quantize=case.quantize,
    )
    train = TrainConfig(
        full=case.full,
        optimizer=case.optimizer,
        row_tokens=case.row_tokens,
        batch_rows=case.rows * case.workers * case.accumulation,
        micro_rows=case.rows,
        zero_stage=case.stage,
    )
    return model, train, Vocabulary(case.vocabulary)


def base_of(config: Any, tokenizer: Any, device: Literal["cpu", "meta"]) -> Any:
    """Load the case's model or make one of random weights, which is written down to be loaded in 4 bits."""
    import torch
    from safetensors.torch import save_model

    from arc_ray.models.build import scratch_model
    from arc_ray.models.weights import load_base

    if config.base:
        return load_base(config, "", device)
    if not config.quantize:
        with torch.device(device):
            return scratch_model(config.scratch, tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        made = scratch_model(config.scratch, tokenizer)
        made.config.save_pretrained(folder)
        # Not by the model's own hand: it writes weights on the first of the workers alone.
        save_model(made, f"{folder}/model.safetensors", metadata={"format": "pt"})
        model = load_base(config.model_copy(update={"base": folder, "scratch": None}), "", device)
        for weight in model.parameters():
            weight.data = weight.data.clone()  # else the file stays mapped, and counts as resident
        return model


class Vocabulary:
    """What building a model from scratch asks of a tokenizer."""

    pad_token_id, bos_token_id, eos_token_id = 0, 1, 2

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size


def work(case: Case) -> None:
    """Be one worker: warm up on a tiny model, then measure."""
    import dataclasses

    import torch

    torch.set_num_threads(THREADS)
    torch.distributed.init_process_group("gloo")
    small = {"hidden": 128, "layers": 1, "row_tokens": 32, "vocabulary": 64, "base": None, "steps": 2}
    train_steps(dataclasses.replace(case, **small), lambda: None)
    before = resident()
    found: dict[str, float] = {"tokens": case.steps * case.accumulation * case.rows * case.row_tokens}

    def reset() -> None:
        found["at_rest"] = resident() - before
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        found["begun"] = time.process_time()

    train_steps(case, reset)
    found["cpu"] = time.process_time() - found["begun"]
    found["peak"] = resident("VmHWM") - before
    if torch.distributed.get_rank() == 0:
        print(json.dumps(found))


def train_steps(case: Case, before_steps: Any) -> None:
    """Build a case as the training worker does and train on random rows."""
    import torch

    from arc_ray.models.build import adapted
    from arc_ray.models.loss import LearnedLoss, inputs_of
    from arc_ray.rows.maker import IGNORED
    from arc_ray.train.engine import make_engine

    model_config, train, tokenizer = configs(case)
    model = adapted(base_of(model_config, tokenizer, "cpu"), model_config, [], case.full)
    if case.dtype == "bfloat16":
        model = model.bfloat16()
    engine = make_engine(LearnedLoss(model), train, model_config, case.workers)
    before_steps()
    shape = (case.rows, case.row_tokens)
    ids = torch.randint(3, case.vocabulary or 400, shape)
    places = torch.arange(case.row_tokens).remainder(case.row_tokens // 2).expand(shape).contiguous()
    labels = ids.masked_fill(torch.arange(case.row_tokens) >= case.row_tokens * case.learned_share, IGNORED)
    batch = {"input_ids": ids.numpy(), "position_ids": places.numpy(), "labels": labels.numpy()}
    inputs = inputs_of(batch, engine.device)
    for _ in range(case.steps * case.accumulation):
        losses, _ = engine(**inputs)
        engine.backward(losses.sum() / case.row_tokens)
        engine.step()
        del losses


def resident(field: str = "VmRSS") -> int:
    """Return a memory field of this process in bytes."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(Case(**json.loads(sys.argv[2])))
    else:
        main()
