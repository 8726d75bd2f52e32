"""YAML and dotted overrides in, a checked `Config` out; every mistake becomes one line a person can act on."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from arc_ray.config.files import Dumper, read_tree, read_value
from arc_ray.config.mistakes import explain, is_section, known_keys, nearest
from arc_ray.config.tree import Config
from arc_ray.errors import UserError
from arc_ray.storage import Folder

Overrides = Mapping[str, Any]
"""Dotted config keys and their values, such as {"train.lr": 2e-4}."""


def load_config(path: str | Path, overrides: Overrides | None = None) -> Config:
    """Read a YAML file with what it includes, put dotted overrides over it, check everything. Raises UserError."""
    return _with_absolute_paths(config_from(read_tree(Path(path)), overrides or {}, origin=str(path)))


def config_from(tree: dict[str, Any], overrides: Overrides, origin: str = "config") -> Config:
    """Check a nested dict with dotted overrides put over it; `origin` names it in errors. Raises UserError."""
    tree = _plain(tree)
    for key, value in overrides.items():
        _set(tree, key, _plain(value))
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        raise UserError("\n".join(explain(item, tree, origin) for item in error.errors()[:5])) from error
    for section in ("starts", "runs"):
        for name, nested in getattr(config, section).items():
            _check_keys(nested, f"{origin}: {section}.{name}")
            _check_no_section(nested, f"{origin}: {section}.{name}")
    _check_keys(config.tune.space, f"{origin}: tune.space")
    _check_keys([config.study.compare], f"{origin}: study.compare")
    return config


def with_overrides(config: Config, overrides: Overrides, origin: str = "override") -> Config:
    """Return the config with dotted keys changed: what a trial, a start and the command line all do. Raises UserError."""
    return config_from(config.model_dump(mode="json"), overrides, origin) if overrides else config


def parse_assignments(words: Sequence[str]) -> dict[str, Any]:
    """Turn `key=value` words into overrides; values are as `read_value` has them. Raises UserError."""
    overrides: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise UserError(f"{word!r} is no override; write key=value, such as train.lr=2e-4")
        try:
            overrides[key] = read_value(value)
        except yaml.YAMLError as error:
            raise UserError(f"{word!r}: the value is no YAML: {' '.join(str(error).split())}") from error
    return overrides


def to_yaml(config: Config) -> str:
    """Write the whole resolved config as YAML, keys in the order of the tree."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=Dumper, sort_keys=False, width=110)


def save_config(config: Config, path: Path) -> None:
    """Write the resolved config to a local file."""
    path.write_text(to_yaml(config))


def differing_keys(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """List the dotted keys whose values differ between two dumped configs, sorted."""
    flat_a, flat_b = dict(_flatten(a)), dict(_flatten(b))
    missing = object()
    return sorted(k for k in flat_a.keys() | flat_b.keys() if flat_a.get(k, missing) != flat_b.get(k, missing))


def _with_absolute_paths(config: Config) -> Config:
    """Fix local paths to the current directory: workers have another one."""
    players = {key: _absolute_if_there(getattr(config.evaluate, key)) for key in ("checkpoint", "describer")}
    model = {key: _absolute_if_there(getattr(config.model, key)) for key in ("base", "adapter")}
    update = {"model": config.model.model_copy(update=model), "evaluate": config.evaluate.model_copy(update=players)}
    return config.model_copy(update={**update, "storage": Folder.at(config.storage).uri})


def _absolute_if_there(path: str | None) -> str | None:
    return str(Path(path).expanduser().absolute()) if path and Path(path).expanduser().is_dir() else path


def _flatten(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, tree


def _plain(value: Any) -> Any:
    """Copy YAML's values as JSON's: keys become text, and so does what JSON does not know, such as dates."""
    return json.loads(json.dumps(value, default=str))


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in a nested dict; keys of `starts`, `runs` and `tune.space` are themselves dotted."""
    parts = key.split(".")
    for prefix, depth in (("starts", 2), ("runs", 2), ("tune.space", 2)):
        if key.startswith(prefix + ".") and len(parts) > depth:
            parts = [*parts[:depth], ".".join(parts[depth:])]
    for part in parts[:-1]:
        child = tree.get(part)
        if child is None:
            child = tree[part] = {}
        if not isinstance(child, dict):
            raise UserError(f"override {key}: {part} is a value ({child!r}), not a section")
        tree = child
    tree[parts[-1]] = value


def _check_keys(keys: Iterable[str], where: str) -> None:
    for key in keys:
        is_free = key.startswith(("data.sources.", "data.mix.", "train.deepspeed."))
        if key not in known_keys() and not is_free:
            raise UserError(f"{where}: unknown key {key}{nearest(key, known_keys())}")


def _check_no_section(overrides: Overrides, where: str) -> None:
    """Refuse nested keys such as {model: {adapter: ...}}: they would set the rest of `model` back to its defaults."""
    for key, value in overrides.items():
        if isinstance(value, Mapping) and is_section(key):
            inner = next(iter(value), "...")
            raise UserError(f"{where}: {key} would be replaced as a whole; write the dotted key {key}.{inner}")
