"""A small training by `arc-ray train` in a process of its own: its config, its command, what its folder holds."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file


def counting_tree(
    examples: int, hidden_size: int, layers: int, train: dict[str, Any], scaling: dict[str, Any]
) -> dict[str, Any]:
    """Make a config that trains LoRA on counting questions, upon a base of random weights after two steps."""
    return {
        "name": "run",
        "data": {
            "sources": {"counting": {"kind": "counting", "examples": examples, "max_side": 5}},
            "mix": {"counting": 1},
            "validation": [],
        },
        "prompt": {"format": "compact", "encoder": "compact"},
        "model": {"base": "@base", "lora": {"r": 4, "alpha": 8}},
        "runs": {
            "base": {
                "model.base": None,
                "model.scratch": {
                    "hidden_size": hidden_size,
                    "layers": layers,
                    "heads": 2,
                    "intermediate_size": 2 * hidden_size,
                },
                "train.full": True,
                "train.max_steps": 2,
            }
        },
        "train": train,
        "scaling": scaling,
        "ray": {"object_store_mib": 100},
    }


def train_command(folder: Path, *words: str) -> list[str]:
    return [sys.executable, "-c", "from arc_ray.cli import main; main()", "train", str(folder / "config.yaml"), *words]


def environment() -> dict[str, str]:
    return {**os.environ, "RAY_AUTH_MODE": "disabled", "PYTHONUNBUFFERED": "1"}


def records(folder: Path, name: str) -> list[dict[str, Any]]:
    """The metric records of a run's steps; those of validations alone are left out."""
    lines = (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if "train/loss" in record]


def adapter(folder: Path, name: str) -> dict[str, np.ndarray]:
    """The adapter of a finished run's last checkpoint."""
    result = json.loads((folder / "runs" / name / "result.json").read_text())
    return load_file(folder / "runs" / name / result["checkpoint"] / "adapter_model.safetensors")
