"""YAML and dotted overrides in, a checked `Config` out; every mistake becomes one line a person can act on."""

import difflib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from arc_ray.config.files import Dumper, read_tree, read_value
from arc_ray.config.section import FORMS, absolute, absolute_model
from arc_ray.config.tree import SOURCE_KINDS, Config, known_keys, sections_among, types_below, types_of
from arc_ray.errors import UserError, located, nearest

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
        raise UserError("\n".join(_explain(item, tree, origin) for item in error.errors()[:5])) from error
    nested = {f"starts.{name}": keys for name, keys in config.starts.items()}
    nested |= {f"runs.{name}": keys for name, keys in config.runs.items()}
    nested |= {"tune.space": dict.fromkeys(config.tune.space), "study.compare": {config.study.compare: None}}
    for where, keys in nested.items():
        for key, value in keys.items():
            _check_override(key, value, f"{origin}: {where}")
    return config


def with_overrides(config: Config, overrides: Overrides, origin: str = "override") -> Config:
    """Return the config with dotted keys changed: what a trial, a start and the command line all do. Raises UserError."""
    return config_from(config.model_dump(mode="json"), overrides, origin) if overrides else config


def parse_assignments(words: Sequence[str]) -> dict[str, Any]:
    """Turn `key=value` words into overrides; values are as `read_value` has them. Raises UserError."""
    overrides: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if word.startswith("-"):
            name = key.strip("-")
            meant = [f"{k}={value or '...'}" for k in sorted(known_keys()) if f".{k}".endswith(f".{name}")]
            hint = f"; config keys are given without dashes: {' or '.join(meant)}" if meant else ""
            raise UserError(f"{word}: no option of this command; `--help` lists them{hint}")
        if not equals or not key:
            example = f"{word}=..." if word in known_keys() else "train.lr=2e-4"
            raise UserError(f"{word!r} changes no key of the config; write KEY=VALUE, such as {example}")
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


def _with_absolute_paths(config: Config) -> Config:
    """Fix local paths to the current directory, by the types of their keys: workers and trials have another one."""
    tree = _fixed(config.model_dump(mode="json"), (Config,))
    for key, spec in tree["tune"]["space"].items():
        tree["tune"]["space"][key] = {
            kind: _fixed(values, types_of(key), f"tune.space.{key}") for kind, values in spec.items()
        }
    tree["study"]["arms"] = _fixed(tree["study"]["arms"], types_of(config.study.compare), "study.arms")
    return Config.model_validate(tree)


def _fixed(value: Any, types: tuple[Any, ...], key: str = "") -> Any:
    if isinstance(value, dict):
        return {
            name: _fixed(inner, types_below(types, name), f"{key}.{name}".strip(".")) for name, inner in value.items()
        }
    if isinstance(value, list):
        return [_fixed(inner, types, key) for inner in value]
    if isinstance(value, str):
        with located(key):
            for fix in (absolute, absolute_model):
                value = fix(value) if fix in types else value
    return value


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
    if key.startswith(("starts.", "runs.", "tune.space.")) and len(parts) > 2:
        parts = [*parts[:2], ".".join(parts[2:])]
    for part in parts[:-1]:
        child = tree.get(part)
        if child is None:
            child = tree[part] = {}
        if not isinstance(child, dict):
            raise UserError(f"override {key}: {part} is a value ({child!r}), not a section")
        tree = child
    tree[parts[-1]] = value


def _check_override(key: str, value: Any, where: str) -> None:
    """Refuse a key that does not exist, and nested keys such as {model: {adapter: ...}}: they would set the rest of
    `model` back to its defaults. Sections that may be null, such as model.scratch, are given as a whole."""
    is_free = key.startswith(("data.sources.", "data.mix.", "train.deepspeed."))
    if key not in known_keys() and not is_free:
        raise UserError(f"{where}: unknown key {key}{nearest(key, known_keys())}")
    if isinstance(value, Mapping) and sections_among(types_of(key)[:1]):
        inner = next(iter(value), "...")
        raise UserError(f"{where}: {key} would be replaced as a whole; write the dotted key {key}.{inner}")


def _explain(item: Any, tree: dict[str, Any], origin: str) -> str:
    """Say in one line what is wrong; `item` is one of pydantic's errors about `tree`, which came from `origin`."""
    path = _written_path(item, tree)
    key = ".".join(path)
    message = item["msg"].removeprefix("Value error, ")
    match item["type"]:
        case "extra_forbidden":
            return f"{origin}: unknown key {key}{_hint(path, item['loc'])}"
        case "union_tag_not_found":
            return f"{origin}: {key}.kind is missing; it is one of {', '.join(SOURCE_KINDS)}"
        case "union_tag_invalid":
            kind = item["ctx"]["tag"]
            return (
                f"{origin}: {key}.kind is one of {', '.join(SOURCE_KINDS)}; got {kind!r}{nearest(kind, SOURCE_KINDS)}"
            )
        case "value_error" | "missing":
            given = ""
        case "string_pattern_mismatch":
            message, given = f"write {FORMS[item['ctx']['pattern']]}", f"; got {item['input']!r}"
        case "string_type" if isinstance(item["input"], int | float):
            given = f"; got {item['input']!r}, a number to YAML: put it in quotes"
        case _:
            given = f"; got {item['input']!r}"
    return f"{origin}: {key + ': ' if key else ''}{message}{given}"


def _written_path(item: Any, tree: Any) -> list[str]:
    """Leave out of pydantic's path what nobody wrote: the kind of a source, the member of a union."""
    path: list[str] = []
    for part in item["loc"]:
        if part in (tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()):
            tree = tree[part]
            path.append(str(part))
    return [*path, str(item["loc"][-1])] if item["type"] == "missing" else path


def _hint(path: Sequence[str], loc: Sequence[Any]) -> str:
    """Name the valid key that is nearest to an unknown one: beside it, or anywhere in the tree."""
    *parents, wrong = path
    prefix, is_of_source = "".join(f"{part}." for part in parents), parents[:2] == ["data", "sources"]
    types = (SOURCE_KINDS[loc[-2]],) if is_of_source else types_of(".".join(parents))
    siblings = sorted({name for section in sections_among(types) for name in section.model_fields})
    if beside := nearest(wrong, siblings, before=prefix):
        return beside
    if not is_of_source:
        by_name = {key.rpartition(".")[2]: key for key in sorted(known_keys())}
        for name in difflib.get_close_matches(wrong, sorted(by_name), n=1):
            return f"; did you mean {by_name[name]}?"
    return f"; valid keys there: {', '.join(siblings)}" if siblings else ""
