"""YAML and dotted overrides in, a checked `Config` out; every mistake becomes one line a person can act on."""

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from arc_ray.config.tree import Config
from arc_ray.errors import UserError

Overrides = Mapping[str, Any]
"""Dotted config keys and their values, such as {"train.lr": 2e-4}."""


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads `2e-4` as text; this loader reads it as the number everybody means."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    __import__("re").compile(r"^[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def load_config(path: str | Path, overrides: Overrides | None = None) -> Config:
    """Read a YAML file, put dotted overrides over it, check everything. Raises UserError."""
    try:
        text = Path(path).read_text()
    except OSError as error:
        near = difflib.get_close_matches(str(path), [str(p) for p in Path("configs").rglob("*.yaml")], n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"config {path}: {error.strerror or error}{hint}") from error
    try:
        tree = yaml.load(text, Loader=_Loader) or {}
    except yaml.YAMLError as error:
        raise UserError(f"config {path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise UserError(f"config {path}: the top level must be keys and values, not {type(tree).__name__}")
    return config_from(tree, overrides or {}, origin=str(path))


def config_from(tree: dict[str, Any], overrides: Overrides, origin: str = "config") -> Config:
    """Check a nested dict with dotted overrides put over it; `origin` names it in errors. Raises UserError."""
    tree = json.loads(json.dumps(tree))
    for key, value in overrides.items():
        _set(tree, key, value)
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        raise UserError("\n".join(_explain(item, origin) for item in error.errors()[:5])) from error
    for section in ("starts", "runs"):
        for name, nested in getattr(config, section).items():
            _check_keys(nested, f"{origin}: {section}.{name}", config)
    _check_keys(config.tune.space, f"{origin}: tune.space", config)
    _check_keys([config.study.compare], f"{origin}: study.compare", config)
    return config


def with_overrides(config: Config, overrides: Overrides, origin: str = "override") -> Config:
    """Return the config with dotted keys changed: what a trial, a start and the command line all do. Raises UserError."""
    return config_from(config.model_dump(mode="json"), overrides, origin) if overrides else config


def parse_assignments(words: Sequence[str]) -> dict[str, Any]:
    """Turn `key=value` words into overrides; values are YAML (2e-4, true, null, [1, 2]). Raises UserError."""
    overrides: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise UserError(f"{word!r} is no override; write key=value, such as train.lr=2e-4")
        try:
            overrides[key] = yaml.load(value, Loader=_Loader)
        except yaml.YAMLError as error:
            raise UserError(f"{word!r}: the value is no YAML: {' '.join(str(error).split())}") from error
    return overrides


def to_yaml(config: Config) -> str:
    """Write the whole resolved config as YAML, keys in the order of the tree."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, width=110)


def save_config(config: Config, path: Path) -> None:
    """Write the resolved config to a local file."""
    path.write_text(to_yaml(config))


def differing_keys(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """List the dotted keys whose values differ between two dumped configs, sorted."""
    flat_a, flat_b = dict(_flatten(a)), dict(_flatten(b))
    missing = object()
    return sorted(k for k in flat_a.keys() | flat_b.keys() if flat_a.get(k, missing) != flat_b.get(k, missing))


def _flatten(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, tree


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


def _check_keys(keys: Any, where: str, config: Config) -> None:
    known = _known_keys(config)
    for key in keys:
        free = key.startswith(("data.sources.", "data.mix.", "train.deepspeed."))
        if key not in known and not free:
            raise UserError(f"{where}: unknown key {key}{_nearest(key, known)}")


def _known_keys(config: Config) -> set[str]:
    def walk(model: type[BaseModel], prefix: str) -> Iterator[str]:
        for name, info in model.model_fields.items():
            key = f"{prefix}{name}"
            yield key
            for kind in (info.annotation, *get_args(info.annotation)):
                if isinstance(kind, type) and issubclass(kind, BaseModel):
                    yield from walk(kind, f"{key}.")

    return set(walk(type(config), ""))


def _nearest(key: str, known: set[str]) -> str:
    near = difflib.get_close_matches(key, sorted(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _explain(item: Any, origin: str) -> str:
    parts = [str(part) for part in item["loc"]]
    key = ".".join(parts)
    if item["type"] == "extra_forbidden":
        parent = ".".join(p for p in parts[:-1])
        siblings = _siblings(parts[:-1])
        near = difflib.get_close_matches(parts[-1], siblings, n=1)
        everywhere = {k.rsplit(".", 1)[-1]: k for k in sorted(_known_keys(Config()))}
        elsewhere = difflib.get_close_matches(parts[-1], everywhere, n=1)
        prefix = f"{parent}." if parent else ""
        if near:
            hint = f"; did you mean {prefix}{near[0]}?"
        elif elsewhere:
            hint = f"; did you mean {everywhere[elsewhere[0]]}?"
        else:
            hint = f"; valid keys there: {', '.join(siblings)}" if siblings else ""
        return f"{origin}: unknown key {key}{hint}"
    message = item["msg"].removeprefix("Value error, ")
    given = "" if item["type"] in ("value_error", "missing") else f"; got {item['input']!r}"
    return f"{origin}: {key + ': ' if key else ''}{message}{given}"


def _siblings(parents: list[str]) -> list[str]:
    """List the valid keys next to a wrong one, by walking the tree's types."""
    model: Any = Config
    for part in parents:
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return []
        if part not in model.model_fields:
            return []
        kinds = (model.model_fields[part].annotation, *get_args(model.model_fields[part].annotation))
        model = next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)
    return sorted(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []
