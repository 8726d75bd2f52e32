"""YAML and dotted overrides in, a checked `Config` out; every mistake becomes one line a person can act on."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from pydantic import ValidationError

from arc_ray.config.files import Dumper, read_tree, read_value
from arc_ray.config.mistakes import explain, is_section, known_keys
from arc_ray.config.section import DottedKeys, Section, absolute, absolute_model
from arc_ray.config.tree import Config
from arc_ray.errors import UserError, nearest

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


def differing_keys(
    a: Mapping[str, Any], b: Mapping[str, Any], same: Callable[[str, Any, Any], bool] = lambda key, old, new: old == new
) -> list[str]:
    """List the dotted keys whose values differ between two dumped configs, sorted; `same` may take more for equal."""
    flat_a, flat_b = dict(_flatten(a)), dict(_flatten(b))
    missing = object()
    return sorted(
        k for k in flat_a.keys() | flat_b.keys() if not same(k, flat_a.get(k, missing), flat_b.get(k, missing))
    )


def types_of(key: str) -> tuple[Any, ...]:
    """Return what the value of a dotted key may be: its type with the parts of that, `absolute` among them for a path."""
    return _types_below((Config,), key)


def _with_absolute_paths(config: Config) -> Config:
    """Fix local paths to the current directory, by the types of their keys: workers and trials have another one."""
    tree = _fixed(config.model_dump(mode="json"), (Config,))
    for key, spec in tree["tune"]["space"].items():
        tree["tune"]["space"][key] = {kind: _fixed(values, types_of(key)) for kind, values in spec.items()}
    tree["study"]["arms"] = _fixed(tree["study"]["arms"], types_of(config.study.compare))
    return Config.model_validate(tree)


def _fixed(value: Any, types: tuple[Any, ...]) -> Any:
    if isinstance(value, dict):
        return {name: _fixed(inner, _types_below(types, name)) for name, inner in value.items()}
    if isinstance(value, list):
        return [_fixed(inner, types) for inner in value]
    if isinstance(value, str):
        for fix in (absolute, absolute_model):
            value = fix(value) if fix in types else value
    return value


def _types_below(types: tuple[Any, ...], key: str) -> tuple[Any, ...]:
    """Return the parts of the types that a key, which may be dotted, has in values of these types."""
    name, _, rest = key.partition(".")
    below: list[Any] = []
    for kind in types:
        if get_origin(kind) is dict:  # of names that a user chose, which may hold dots
            values = _parts(get_args(kind)[1])
            below += [*values, *_types_below(values, rest)]
        elif name in (fields := _fields(kind)):
            below += _types_below(_parts(fields[name]), rest) if rest else _parts(fields[name])
    return tuple(below)


def _parts(kind: Any) -> tuple[Any, ...]:
    """Take unions, lists and annotations apart; dotted overrides are as the config itself."""
    if kind is DottedKeys:
        return (Config,)
    if get_origin(kind) is dict:
        return (kind,)
    return (kind, *(part for argument in get_args(kind) for part in _parts(argument)))


@cache
def _fields(kind: Any) -> dict[str, Any]:
    is_section = isinstance(kind, type) and issubclass(kind, Section)
    return get_type_hints(kind, include_extras=True) if is_section else {}


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
