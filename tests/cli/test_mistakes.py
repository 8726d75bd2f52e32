"""A user's mistake that only a worker finds: one message, as it was raised there, and nothing is tried again."""

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import codec_of, tiny_model, tiny_tokenizer
from ray.exceptions import RayTaskError
from ray.train import FailureConfig, WorkerGroupError
from ray.train.v2._internal.execution.failure_handling import FailureDecision

from arc_ray.config import Config, config_from, with_overrides
from arc_ray.errors import UserError, mistake_in, unwrapped
from arc_ray.evaluate.evaluation import run_evaluation
from arc_ray.evaluate.pool import Hosts
from arc_ray.evaluate.questions import Work
from arc_ray.evaluate.ttt import tune_all
from arc_ray.models.build import build_model
from arc_ray.models.lora import check_engine
from arc_ray.prompts.tokenizer import load_tokenizer
from arc_ray.runs.folder import run_folder
from arc_ray.tasks.task import Pair, Task, task_to_json
from arc_ray.train.run import _MistakesEndIt, run_training
from arc_ray.tune.search import Search

MESSAGE = "model.base x: is no model; give another"


def of_task(error: Exception) -> Exception:
    """What `ray.get` raises for a task that raised `error`."""
    return RayTaskError("f", f"Traceback ...\nUserError: {error}", error).as_instanceof_cause()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda e: e,
        of_task,
        lambda e: WorkerGroupError("[rank 1] Traceback ...", {0: RuntimeError("connection reset"), 1: e}),
        lambda e: of_task(WorkerGroupError("...", {0: e})),
    ],
)
def test_a_mistake_is_found_in_what_ray_makes_of_it(wrap: Callable[[Exception], Exception]) -> None:
    """Catches a traceback in place of the message: what Ray raises for a UserError of a task is a UserError by its type."""
    with pytest.raises(UserError) as raised, unwrapped():
        raise wrap(UserError(MESSAGE))
    assert str(raised.value) == MESSAGE
    assert type(raised.value) is UserError
    ours = wrap(ValueError("a bug"))
    assert mistake_in(ours) is None
    with pytest.raises(type(ours)), unwrapped():
        raise ours


FULL_DISK = "storage: cannot write /mnt/x: No space left on device; free some space, or give another storage="
"""What a worker's message ends with when it comes with its traceback."""


@pytest.mark.parametrize("wrap", [lambda e: e, of_task, lambda e: WorkerGroupError("...", {0: e})])
@pytest.mark.parametrize(
    ("error", "exit_code", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/mnt/x"), 2, "a disk is full: .*/mnt/x.*storage="),
        (
            RuntimeError(f'raise StorageError(f"{{self}}")\narc_ray.errors.StorageError: {FULL_DISK}'),
            2,
            f"^{FULL_DISK}$",
        ),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 2, "a disk is full: .*Disk quota exceeded"),
        (RuntimeError('I/O error: Os { code: 28, message: "No space left on device" }'), 2, "a disk is full"),
        (
            torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB"),
            1,
            "out of memory: .*train.micro_rows",
        ),
        (
            OSError("When reading 'x': AWS Error NETWORK_CONNECTION during HeadObject operation: curlCode: 7"),
            2,
            "the storage does not answer as it should: .*NETWORK_CONNECTION.*the same command goes on",
        ),
        (MemoryError(), 1, "out of memory: MemoryError; .*evaluate.batch_tokens"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"), 1, "out of memory: "),
    ],
)
def test_a_full_disk_or_memory_or_a_silent_bucket_is_named_in_one_line(
    wrap: Callable[[Exception], Exception], error: Exception, exit_code: int, said: str
) -> None:
    """Catches a reason that is the last of a hundred lines, and what helps left out."""
    with pytest.raises(UserError, match=said) as raised, unwrapped():
        raise wrap(error)
    assert raised.value.exit_code == exit_code
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("error", "decision"),
    [(UserError(MESSAGE), FailureDecision.RAISE), (RuntimeError("node lost"), FailureDecision.RETRY)],
)
def test_workers_are_not_started_again_for_a_mistake(error: Exception, decision: FailureDecision) -> None:
    """Catches four attempts at what no attempt can mend, and a worker that is no longer replaced."""
    policy = _MistakesEndIt(FailureConfig(max_failures=3))
    failure: Any = WorkerGroupError("...", {0: error})
    assert policy.make_decision(failure) == decision


def build_as_a_worker_does(config: Config) -> None:
    tokenizer = load_tokenizer(config.model, config.storage)
    model = build_model(config.model, config.storage, 0, config.train.full, tokenizer, config.train.row_tokens)
    check_engine(model, config.train)


def without_tokenizer(base: Path) -> None:
    (base / "tokenizer.json").unlink()
    (base / "tokenizer_config.json").unlink()


def of_tomorrow(base: Path) -> None:
    about = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(
        json.dumps(about | {"model_type": "qwen9", "architectures": ["Qwen9ForCausalLM"]})
    )


@pytest.mark.slow
def test_a_base_that_only_a_worker_looks_at_is_refused_there_in_one_message(tmp_path: Path, ray_session: None) -> None:
    """Catches a traceback, or a message that a process of Ray's changes, for each thing that can be wrong about a base."""
    import ray

    for name, fault in {"plain": None, "bare": without_tokenizer, "new": of_tomorrow}.items():
        tiny_model(seed=3).save_pretrained(tmp_path / name)
        tiny_tokenizer().save_pretrained(tmp_path / name)
        if fault:
            fault(tmp_path / name)
    faults: dict[str, dict[str, Any]] = {
        "no folder here, and no built-in name; did you mean smollm2": {"model.base": "smolm2"},
        "the hub http://127.0.0.1:9 cannot be reached": {"model.base": "acme/tiny"},
        "its architecture is qwen9": {"model.base": str(tmp_path / "new")},
        "there is no tokenizer in this folder": {"model.base": str(tmp_path / "bare")},
        "train.zero_stage 3 does not go with a base of 4 bits": {
            "model.base": str(tmp_path / "plain"),
            "model.quantize": "nf4",
            "train.zero_stage": 3,
        },
    }
    build = ray.remote(num_cpus=0, runtime_env={"env_vars": {"HF_ENDPOINT": "http://127.0.0.1:9"}})(
        build_as_a_worker_does
    )
    for message, changes in faults.items():
        with pytest.raises(UserError, match=message) as raised, unwrapped():
            ray.get(build.remote(config_in(tmp_path, "worker", **changes)))
        assert type(raised.value) is UserError
        assert "\n" not in str(raised.value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Path:
    """A storage folder with a task and a base without weights: its tokenizer loads, so the first to see it is a worker."""
    path = tmp_path_factory.mktemp("mistakes")
    tiny_model(seed=3).save_pretrained(path / "base")
    tiny_tokenizer().save_pretrained(path / "base")
    (path / "base" / "model.safetensors").unlink()
    (path / "tasks").mkdir()
    pairs = tuple(Pair(np.full((2, 2), i, np.uint8), np.full((2, 2), i, np.uint8)) for i in range(4))
    (path / "tasks" / "t.json").write_text(json.dumps(task_to_json(Task("t", pairs[:3], pairs[3:]))))
    return path


def config_in(folder: Path, name: str, **changes: Any) -> Config:
    return config_from(
        {
            "name": name,
            "storage": str(folder / "runs"),
            "data": {
                "sources": {"set": {"kind": "folder", "path": str(folder / "tasks")}},
                "mix": {"set": 4},
                "validation": ["set"],
                "allow_overlap": True,
            },
            "prompt": {"format": "compact", "encoder": "compact"},
            "model": {"base": str(folder / "base"), "lora": {"r": 4, "alpha": 8}},
            "train": {"row_tokens": 512, "batch_rows": 1},
            "evaluate": {"sets": ["set"], "symmetries": 1},
            "tune": {"space": {"train.lr": {"grid": [1e-3, 1e-4]}}, "scheduler": {"kind": "fifo"}},
            "scaling": {"use_gpu": False, "num_workers": 1, "threads": 1, "cpus_per_worker": 0.5, "data_cpus": 0.25},
        },
        changes,
    )


def train(config: Config) -> None:
    run_training(config)


def train_in_a_group(config: Config) -> None:
    run_training(with_overrides(config, {"scaling.num_workers": 2, "train.batch_rows": 2}))


def tune(config: Config) -> None:
    points = [{"train.lr": lr} for lr in (1e-3, 1e-4)]
    Search(config, lambda _: None).run_points(points)


def evaluate(config: Config) -> None:
    run_evaluation(config, lambda *_: None)


def tune_on_a_task(config: Config) -> None:
    config = with_overrides(config, {"evaluate.ttt": {"steps": 1, "retries": 2}})
    pair = Pair(np.zeros((1, 1), np.uint8), None)
    work = Work("work", task=Task("t", (pair,), ()), set_name="set")
    tune_all(Hosts(), config, run_folder(config), codec_of(tiny_tokenizer()), [work], lambda *_: None)


@pytest.mark.slow
@pytest.mark.parametrize("work", [train, train_in_a_group, tune, evaluate, tune_on_a_task])
def test_a_mistake_that_a_worker_finds_is_raised_as_it_was_there(folder: Path, work: Callable[[Config], None]) -> None:
    """Catches a mistake that ends as TrainingFailedError, as an error of Ray Data's or of an actor's, or as ours."""
    with pytest.raises(UserError) as raised:
        work(config_in(folder, work.__name__))
    said = str(raised.value)
    assert "cannot be loaded as a model" in said
    assert "\n" not in said
    if work is tune:
        assert said.startswith("all 2 trials failed: model.base ")
        trials = [json.loads(path.read_text()) for path in (folder / "runs" / "tune" / "trials").glob("*/trial.json")]
        assert [(t["status"], t["is_mistake"]) for t in trials] == [("failed", True)] * 2
