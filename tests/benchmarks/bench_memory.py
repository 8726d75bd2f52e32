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
from dataclasses import asdict, dataclass
from typing import Any

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

    def describe(self) -> str:
        """Say what is special about the case."""
        how = "all parameters" if self.full else "LoRA"
        recomputed = ", checkpointed" if self.checkpointing else ""
        return (
            f"{self.layers} layers of {self.hidden}, {how}, {self.dtype}{recomputed}; {self.rows} x {self.row_tokens}"
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
    print(f"{len(cases)} cases: estimates are {min(ratios):.2f} to {max(ratios):.2f} of what was measured")
    sys.exit(not TOLERATED[0] <= min(ratios) <= max(ratios) <= TOLERATED[1])


def measure(case: Case) -> dict[str, int]:
    """Train a case in processes of its own and return bytes: the peak, and what was there before the first step."""
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
    outputs = [worker.communicate(timeout=170) for worker in workers]
    assert all(worker.returncode == 0 for worker in workers), outputs[0][1]
    return json.loads(outputs[0][0].splitlines()[-1])


def estimate(case: Case) -> dict[str, int]:
    """Return what `arc-ray check` would say, in bytes."""
    import torch

    from arc_ray.models.build import adapted, scratch_model
    from arc_ray.models.memory import footprint, simulate_pass

    model_config, _, tokenizer = configs(case)
    with torch.device("meta"):
        skeleton = adapted(scratch_model(model_config.scratch, tokenizer), model_config, [], case.full).train()
    skeleton = skeleton.to(getattr(torch, case.dtype))
    found = simulate_pass(skeleton, case.rows, case.row_tokens, int(case.row_tokens * case.learned_share) * case.rows)
    estimated = footprint(skeleton, found, case.stage, case.workers)
    return asdict(estimated) | {"total": estimated.total}


def configs(case: Case) -> tuple[Any, Any, Any]:
    """The model's and the training's config, and a tokenizer of the case's vocabulary size."""
    from arc_ray.config.training import LoraConfig, ModelConfig, ScratchConfig, TrainConfig

    heads = case.hidden // 64
    scratch = ScratchConfig(hidden_size=case.hidden, layers=case.layers, heads=heads, intermediate_size=3 * case.hidden)
    model = ModelConfig(
        scratch=scratch, dtype=case.dtype, gradient_checkpointing=case.checkpointing, lora=LoraConfig(r=32)
    )
    train = TrainConfig(
        full=case.full,
        row_tokens=case.row_tokens,
        batch_rows=case.rows * case.workers * case.accumulation,
        micro_rows=case.rows,
        zero_stage=case.stage,
    )
    return model, train, Vocabulary(case.vocabulary)


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
    train_two_steps(dataclasses.replace(case, hidden=128, layers=1, row_tokens=32, vocabulary=64), lambda: None)
    before = resident()
    found: dict[str, int] = {}

    def reset() -> None:
        found["at_rest"] = resident() - before
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")

    train_two_steps(case, reset)
    found["peak"] = resident("VmHWM") - before
    if torch.distributed.get_rank() == 0:
        print(json.dumps(found))


def train_two_steps(case: Case, before_steps: Any) -> None:
    """Build a case as the training worker does and train two steps on random rows."""
    import torch

    from arc_ray.models.build import adapted, scratch_model
    from arc_ray.models.loss import LearnedLoss, inputs_of
    from arc_ray.rows.maker import IGNORED
    from arc_ray.train.engine import make_engine

    model_config, train, tokenizer = configs(case)
    model = adapted(scratch_model(model_config.scratch, tokenizer), model_config, [], case.full)
    if case.dtype == "bfloat16":
        model = model.bfloat16()
    engine = make_engine(LearnedLoss(model), train, model_config, case.workers)
    before_steps()
    shape = (case.rows, case.row_tokens)
    ids = torch.randint(3, case.vocabulary, shape)
    places = torch.arange(case.row_tokens).remainder(case.row_tokens // 2).expand(shape).contiguous()
    labels = ids.masked_fill(torch.arange(case.row_tokens) >= case.row_tokens * case.learned_share, IGNORED)
    batch = {"input_ids": ids.numpy(), "position_ids": places.numpy(), "labels": labels.numpy()}
    inputs = inputs_of(batch, engine.device)
    for _ in range(2 * case.accumulation):
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
