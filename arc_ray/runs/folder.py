"""The run folder: who made it, from what, is it finished; claimed before work, `result.json` last.

<storage>/<name>/config.yaml  run.json  owner.json  plan.parquet  metrics.jsonl  checkpoint-<step>/  result.json
"""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from arc_ray.config import Config, config_from, differing_keys, to_yaml, types_of, with_overrides
from arc_ray.config.section import BUILT_IN, absolute, absolute_model
from arc_ray.errors import NotMadeYetError, UserError, first_few
from arc_ray.runs.machine import describe_run
from arc_ray.runs.shapes import ConfigShape, MetricsShape, RunShape
from arc_ray.storage import Folder

METRICS_FILE = "metrics.jsonl"
WHERE_NOT_WHAT = (
    "ray",
    "storage",
    "scaling",
    "evaluate.num_actors",
    "evaluate.gpus",
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
    "train.compile",
    "train.log_every",
    "train.tracker",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "question",
)
"""Config keys that say where or how fast, not what is computed: a run goes on with other values of these."""

AUTO = (("scaling", "use_gpu"), ("scaling", "num_workers"), ("model", "dtype"), ("train", "micro_rows"))
"""Config keys, by section, for which something is chosen before a run begins, and kept."""

JOB_FOLDER = "/runtime_resources/working_dir_files/"
"""Part of the path of a job's own copy of the directory from which it was submitted, another one for each cluster."""

PERMISSIONS = ("data.allow_overlap",)
"""Config keys that let a run go on which would be refused; the folder's config.yaml then says so."""


def run_folder(config: Config) -> Folder:
    """Return the folder of a config's run, <storage>/<name>."""
    return Folder.at(config.storage) / config.name


def claim(folder: Folder, config: Config, command: str, redone: Sequence[str] = ()) -> None:
    """Take a folder for a run of this config: write config.yaml and run.json, or go on with a run of the same config.

    Keys in `redone` may differ, because the command does their part again. Raises UserError naming the differing keys
    if another config made the folder, where it is not known which one did, and where another command did.
    """
    refuse_other_command(folder, command)
    is_new, differs = not folder.exists("config.yaml"), refuse_other_config(folder, config, redone)
    if is_new and (made := {"plan.parquet", "result.json"} & {*folder.names()}):
        raise UserError(
            f"{folder.uri} holds {min(made)} of a run without its config.yaml; put that back, or delete the folder"
        )
    content = to_yaml(as_made(folder, config)).encode()
    folder.clear_leftovers()
    if is_new:
        folder.write_json("run.json", describe_run(config, command))
    if is_new or differs:
        folder.write_bytes("config.yaml", content)


def note_sets(folder: Folder, names: Mapping[str, str]) -> None:
    """Write into run.json which version of a set each source of a run has, unless it says so already."""
    about = folder.read_json("run.json", RunShape) or {}
    if "sets" not in about:
        folder.write_json("run.json", about | {"sets": dict(names)})


def refuse_other_command(folder: Folder, command: str) -> None:
    """Refuse a folder that another command has begun to fill: its result would be taken for this one's, or written over.

    A trial is a training. Raises UserError.
    """
    if not folder.exists("config.yaml"):  # written last: what was cut off before belongs to nobody
        return
    about = folder.read_json("run.json", RunShape) or {}
    made_by, asked = ("train" if name == "trial" else name for name in (about.get("command", command), command))
    if made_by != asked:
        raise UserError(
            f"{folder.uri} is of `arc-ray {made_by}`; for `arc-ray {asked}` choose another name=..., or delete the folder"
        )


def refuse_other_config(folder: Folder, config: Config, redone: Sequence[str] = ()) -> list[str]:
    """Return the keys in which a config differs, as it may, from the one that made a folder; none if nothing made it.

    Raises UserError as `claim`.
    """
    if not folder.exists("config.yaml"):
        return []
    made_by = _with_defaults(folder.read_yaml("config.yaml", ConfigShape))
    asked = as_made(folder, config).model_dump(mode="json")
    differing = [k for k in differing_keys(_what(made_by), _what(asked), _is_same) if not _is_where(k)]
    if not set(differing) <= {*redone, *PERMISSIONS}:
        raise UserError(
            f"{folder.uri} was made by another config (differs in: {first_few(differing, 6)});"
            f" choose another name=..., or delete the folder"
        )
    return differing


def as_made(folder: Folder, config: Config) -> Config:
    """Put for what is `auto` in a config what the run in the folder was made with; without a run, nothing changes."""
    made_by = folder.read_yaml("config.yaml", ConfigShape) or {}
    asked = config.model_dump(mode="json")
    open_keys = [(section, key) for section, key in AUTO if asked[section][key] == "auto"]
    found = {f"{section}.{key}": made_by.get(section, {}).get(key, "auto") for section, key in open_keys}
    known = {key: value for key, value in found.items() if value != "auto"}
    return with_overrides(config, known, f"{folder.uri}/config.yaml")


def is_finished(folder: Folder) -> bool:
    """Tell whether the run wrote its result, which it does last."""
    return folder.exists("result.json")


def finish(folder: Folder, result: dict[str, Any]) -> None:
    """Write result.json; from now on the run is finished and a second call of the command does nothing."""
    folder.write_json("result.json", result)


def read_metrics(folder: Folder) -> list[dict[str, Any]]:
    """Read metrics.jsonl: one record a line, slashed names; empty if there is none yet."""
    return folder.read_json_lines(METRICS_FILE, shape=MetricsShape)[0]


class MetricsFile:
    """metrics.jsonl for its one writer, who adds records: to the file if it is local, for a bucket it is written whole."""

    def __init__(self, folder: Folder, first_step: int) -> None:
        """Go on after the records up to a checkpoint, `kept`; the steps of later ones are going to be done again, and all,
        step 0 too, where there is no checkpoint."""
        self._folder = folder
        self.kept = [record for record in read_metrics(folder) if 0 < first_step >= record["step"]]
        self._content, self._is_cut = _lines(self.kept), False

    def append(self, records: Sequence[dict[str, Any]]) -> None:
        """Write further records. Those that are not kept go with the first call: until then they tell what was spent."""
        if not records:
            return
        if self._is_cut and self._folder.is_local:
            self._folder.append_bytes(METRICS_FILE, _lines(records))
            return
        self._content += _lines(records)
        self._folder.write_bytes(METRICS_FILE, self._content)
        self._is_cut = True


class MetricsTail:
    """Follows the metrics of a run for those who watch it: each look reads only what was written since the last one."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._begin()

    def _begin(self) -> None:
        self._end = 0
        self.newest: dict[str, Any] = {}
        """The newest value of every metric."""
        self.validation: dict[str, Any] | None = None
        """The newest record of a validation."""

    def look(self) -> None:
        """Read on; from the beginning where a run that was cut off has gone on, and its file has been cut."""
        try:
            records, end = self._folder.read_json_lines(METRICS_FILE, self._end, MetricsShape)
        except UserError:  # this is no longer the beginning of a line
            records, end = [], -1
        if end < self._end:
            self._begin()
            records, end = self._folder.read_json_lines(METRICS_FILE, shape=MetricsShape)
        self._end = end
        for record in records:
            self.newest |= record
            self.validation = record if "eval/solved" in record else self.validation


def _lines(records: Iterable[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(record, allow_nan=False) + "\n" for record in records).encode()


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
        raise NotMadeYetError(f"{value}: {folder.uri} has no checkpoint; name a run under `runs`, or train it first")
    return (folder / checkpoint_name(steps[-1])).uri


def _with_defaults(made_by: dict[str, Any]) -> dict[str, Any]:
    """Add keys that did not exist when the config was written: their defaults change nothing of what it made."""
    try:
        return config_from(made_by, {}).model_dump(mode="json")
    except UserError:  # a key or value of it no longer exists, and will be named as a difference
        return made_by


def is_place_of(name: str, path: str) -> bool:
    """Tell whether a path is where a storage keeps the built-in model of this name."""
    return name in BUILT_IN and path.endswith(f"/models/{name}")


def outside_job(path: str) -> str:
    """Leave out of a path below a job's own folder what differs from job to job."""
    return re.sub(f".*{JOB_FOLDER}[^/]+/", "", path)


def _is_same(key: str, old: Any, new: Any) -> bool:
    """Tell whether two values of a key are equal, or name the same place where a run folder was written in other words.

    Before paths were made absolute, a relative one was kept; before built-in models had names, their folder was named.
    """
    types = types_of(key)
    if old == new or not (isinstance(old, str) and isinstance(new, str) and {absolute, absolute_model} & set(types)):
        return old == new
    if is_place_of(new, old):
        return True
    old, new = map(outside_job, (old, new))
    is_end = absolute in types and new.endswith(f"/{os.path.normpath(old)}")  # from a directory that is not known now
    return is_end or new in (old, Folder.at(old).uri)


def _what(tree: dict[str, Any]) -> dict[str, Any]:
    """Leave out of a dumped config what its runs and starts say of where and how fast."""
    kept = {
        section: {name: {k: v for k, v in own.items() if not _is_where(k)} for name, own in tree[section].items()}
        for section in ("runs", "starts")
        if section in tree
    }
    return tree | kept


def _is_where(key: str) -> bool:
    return any(key == where or key.startswith(f"{where}.") for where in WHERE_NOT_WHAT)
