"""The run folder: who made it, from what, is it finished; claimed before work, `result.json` last.

<storage>/<name>/config.yaml  run.json  plan.parquet  metrics.jsonl  checkpoint-<step>/  result.json
"""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import yaml

from arc_ray.config import Config, config_from, differing_keys, to_yaml
from arc_ray.errors import UserError
from arc_ray.storage import Folder

PACKAGES = ("ray", "torch", "transformers", "peft", "trl", "deepspeed", "pyarrow", "numpy", "reasoning-gym")
WHERE_NOT_WHAT = (
    "ray",
    "storage",
    "scaling",
    "evaluate.num_actors",
    "evaluate.lookahead",
    "evaluate.ttt.num_workers",
    "evaluate.ttt.gpus",
    "evaluate.ttt.retries",
    "tune.max_concurrent",
    "train.engine",
    "train.max_failures",
    "train.micro_rows",
    "train.zero_stage",
    "train.offload",
    "train.log_every",
    "train.tracker",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "question",
)
"""Config keys that say where or how fast, not what is computed: a run goes on with other values of these."""


def run_folder(config: Config) -> Folder:
    """Return the folder of a config's run, <storage>/<name>."""
    return Folder.at(config.storage) / config.name


def claim(folder: Folder, config: Config, command: str, redone: Sequence[str] = ()) -> None:
    """Take a folder for a run of this config: write config.yaml and run.json, or go on with a run of the same config.

    Keys in `redone` may differ, because the command does their part again. Raises UserError naming the differing keys
    if another config made the folder.
    """
    if folder.exists("config.yaml"):
        made_by = _with_defaults(yaml.safe_load(folder.read_bytes("config.yaml")))
        differing = [k for k in differing_keys(made_by, config.model_dump(mode="json")) if not _is_where(k)]
        if differing and set(differing) <= set(redone):
            folder.write_bytes("config.yaml", to_yaml(config).encode())
        elif differing:
            shown = ", ".join(differing[:6]) + (f" and {len(differing) - 6} more" if len(differing) > 6 else "")
            raise UserError(
                f"{folder.uri} was made by another config (differs in: {shown});"
                f" choose another name=..., or delete the folder"
            )
        return
    folder.write_json("run.json", describe_run(config, command))
    folder.write_bytes("config.yaml", to_yaml(config).encode())


def describe_run(config: Config, command: str) -> dict[str, Any]:
    """Describe where a run was made: command, time, versions, hardware, git commit."""
    return {
        "command": command,
        "arguments": sys.argv[1:],
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": config.seed,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "hardware": {"machine": platform.machine(), "system": platform.system(), "cores": os.cpu_count()},
        "git_commit": _git_commit(),
    }


def is_finished(folder: Folder) -> bool:
    """Tell whether the run wrote its result, which it does last."""
    return folder.exists("result.json")


def finish(folder: Folder, result: dict[str, Any]) -> None:
    """Write result.json; from now on the run is finished and a second call of the command does nothing."""
    folder.write_json("result.json", result)


def read_metrics(folder: Folder) -> list[dict[str, Any]]:
    """Read metrics.jsonl: one record a line, slashed names; empty if there is none yet."""
    if not folder.exists("metrics.jsonl"):
        return []
    return [json.loads(line) for line in folder.read_bytes("metrics.jsonl").decode().splitlines() if line]


def write_metrics(folder: Folder, records: Iterable[dict[str, Any]]) -> None:
    """Write metrics.jsonl whole (buckets cannot append; the file is small)."""
    lines = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
    folder.write_bytes("metrics.jsonl", lines.encode())


def checkpoint_steps(folder: Folder) -> list[int]:
    """List the steps of complete checkpoints, ascending; a checkpoint is complete once its arc_ray.json is there."""
    names = [n for n in folder.names() if n.startswith("checkpoint-") and n.removeprefix("checkpoint-").isdigit()]
    return sorted(int(n.removeprefix("checkpoint-")) for n in names if (folder / n).exists("arc_ray.json"))


def checkpoint_name(step: int) -> str:
    """Name the checkpoint folder of an optimizer step."""
    return f"checkpoint-{step:06d}"


def resolve_reference(value: str, storage: str) -> str:
    """Turn "@run" into the folder of that run's newest checkpoint; other values are returned as they are.

    Raises UserError if the run has no checkpoint.
    """
    if not value.startswith("@"):
        return value
    folder = Folder.at(storage) / value[1:]
    steps = checkpoint_steps(folder)
    if not steps:
        raise UserError(f"{value}: {folder.uri} has no checkpoint; name a run under `runs`, or train it first")
    return (folder / checkpoint_name(steps[-1])).uri


def references(values: Sequence[str | None]) -> Iterator[str]:
    """Yield the run names that "@run" values refer to."""
    yield from (value[1:] for value in values if value and value.startswith("@"))


def _with_defaults(made_by: dict[str, Any]) -> dict[str, Any]:
    """Add keys that did not exist when the config was written: their defaults change nothing of what it made."""
    try:
        return config_from(made_by, {}).model_dump(mode="json")
    except UserError:  # a key or value of it no longer exists, and will be named as a difference
        return made_by


def _is_where(key: str) -> bool:
    return any(key == where or key.startswith(f"{where}.") for where in WHERE_NOT_WHAT)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    try:
        done = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
