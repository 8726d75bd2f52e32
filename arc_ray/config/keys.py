"""The reference of all config keys, from the tree's own documentation, and its JSON schema for editors.

Key("train.lr", "number > 0", "0.0002", "Peak learning rate.", kinds=())
Key("data.sources.NAME.examples", "integer >= 1", "100", "Examples per task ...", kinds=("rearc", "plugin"))
"""

import json
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

from arc_ray.config.files import INCLUDE
from arc_ray.config.tree import Config
from arc_ray.errors import UserError, nearest

NAME = "NAME"
"""Stands in a key for a name that the user chooses."""
TYPES = {"integer": "integer", "number": "number", "boolean": "true | false", "string": "text", "null": "null"}
BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


class Key(NamedTuple):
    """A dotted key of the config."""

    name: str
    values: str
    """What its value may be."""
    default: str
    """As in YAML; empty where a value must be given."""
    meaning: str
    kinds: tuple[str, ...] = ()
    """Of a source: the kinds that have this key."""

    def line(self) -> str:
        """Write all but the name and the meaning: what it may be, what it is otherwise, for which kinds of source."""
        default = f"default {self.default}" if self.default else "must be given"
        return "; ".join([self.values, default, *([f"kind: {', '.join(self.kinds)}"] if self.kinds else [])])


def json_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of a config file, by which editors complete and check its YAML."""
    schema = Config.model_json_schema()
    about = "Another config file, relative to this one, that this one is put over."
    included = {INCLUDE: {"type": "string", "description": about}}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema} | {
        "title": "arc_ray config",
        "properties": included | schema["properties"],
    }


@cache
def all_keys() -> tuple[Key, ...]:
    """List every key in the order of the tree; a section comes before its keys."""
    schema = Config.model_json_schema()
    found: dict[tuple[str, ...], Key] = {}
    for key in _keys(schema, "", schema["$defs"]):
        # Kinds of source share most keys: one entry names them all.
        shared = found.get(key[:4])
        found[key[:4]] = key._replace(kinds=shared.kinds + key.kinds) if shared else key
    return tuple(found.values())


def keys_below(prefix: str) -> list[Key]:
    """List the key named `prefix` and those below it, else those that begin with it; any name may stand where the reference
    has NAME, and a kind of source where it has a source's. Raises UserError if there is none."""
    asked = prefix.strip(".").split(".") if prefix else []
    kinds = {kind for key in all_keys() for kind in key.kinds}

    def matches(key: Key) -> bool:
        words = key.name.split(".")
        return len(words) >= len(asked) and all(
            a == w or (w == NAME and (a not in kinds or a in key.kinds)) for a, w in zip(asked, words, strict=False)
        )

    beginning = (key for key in all_keys() if key.name.startswith(prefix))
    if found := [key for key in all_keys() if matches(key)] or [*beginning]:
        return found
    ends = [key.name for key in all_keys() if key.name.endswith(f".{prefix}")]
    hint = f"; did you mean {' or '.join(ends)}?" if ends else nearest(prefix, [key.name for key in all_keys()])
    raise UserError(f"no config key begins with {prefix}{hint}")


def _keys(
    section: dict[str, Any], prefix: str, sections: Mapping[str, Any], kinds: tuple[str, ...] = ()
) -> Iterator[Key]:
    kind = section["properties"].get("kind", {}).get("const")
    kinds = (kind,) if kind else kinds
    for name, about in section["properties"].items():
        inner = [_resolved(branch, sections) for branch in _branches(about)]
        held = next((branch for branch in inner if "properties" in branch), {})
        meaning = section["description"] if name == "kind" and kind else about.get("description", "")
        default = json.dumps(about["default"], ensure_ascii=False) if "default" in about else ""
        yield Key(
            f"{prefix}{name}",
            " | ".join(map(_values, inner)),
            "as below" if held and default != "null" else default,
            " ".join((meaning or held.get("description", "")).split()),
            kinds,
        )
        if held:
            yield from _keys(held, f"{prefix}{name}.", sections, kinds)
        elif isinstance(named := about.get("additionalProperties"), dict):
            parts = [_resolved(branch, sections) for branch in _branches(named)]
            for part in [part for part in parts if "properties" in part]:
                ordered = {"kind": part["properties"]["kind"]} | part["properties"]
                yield from _keys(part | {"properties": ordered}, f"{prefix}{name}.{NAME}.", sections)


def _branches(about: dict[str, Any]) -> list[dict[str, Any]]:
    """Take a union apart."""
    return about.get("anyOf") or about.get("oneOf") or [about]


def _resolved(about: dict[str, Any], sections: Mapping[str, Any]) -> dict[str, Any]:
    return sections[about["$ref"].rsplit("/", 1)[-1]] if "$ref" in about else about


def _values(about: dict[str, Any]) -> str:
    """Say what a value may be, such as `auto | integer >= 1`."""
    if "properties" in about:
        return "section"
    if choices := about.get("enum", [about["const"]] if "const" in about else []):
        return " | ".join(choice if isinstance(choice, str) else json.dumps(choice) for choice in choices)
    kind = about.get("type", "")
    if kind == "array":
        if parts := about.get("prefixItems"):
            return f"[{', '.join(_values(part) for part in parts)}]"
        return f"list of {' | '.join(_values(branch) for branch in _branches(about.get('items', {})))}"
    if kind == "object":
        inner = about.get("additionalProperties")
        return f"{{{NAME}: {_values(inner)}}}" if isinstance(inner, dict) else "{KEY: value}"
    if "oneOf" in about:
        return "section"
    bounds = [f"{sign} {about[bound]:g}" for bound, sign in BOUNDS.items() if bound in about]
    return f"{TYPES.get(kind, 'anything')} {' and '.join(bounds)}".strip()
