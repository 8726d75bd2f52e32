"""Mistakes in a config, put so that a person can act on them: what, where, and the nearest key that would be right."""

import difflib
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, get_args, get_origin

from arc_ray.config.section import Section
from arc_ray.config.sources import AnySource
from arc_ray.config.tree import Config
from arc_ray.errors import nearest


@cache
def known_keys() -> frozenset[str]:
    """List every dotted key of the tree, but for those within a dict of the user's names (sources, mix)."""

    def walk(section: type[Section], prefix: str) -> Iterator[str]:
        for name, info in section.model_fields.items():
            yield f"{prefix}{name}"
            if get_origin(info.annotation) is not dict:
                for inner in _sections_in(info.annotation):
                    yield from walk(inner, f"{prefix}{name}.")

    return frozenset(walk(Config, ""))


def is_section(key: str) -> bool:
    """Tell whether a key stands for a part of the tree that is always there (unlike model.scratch, which may be null)."""
    kind: Any = Config
    for part in key.split("."):
        field = kind.model_fields.get(part) if isinstance(kind, type) and issubclass(kind, Section) else None
        kind = field.annotation if field else None
    return isinstance(kind, type) and issubclass(kind, Section)


def explain(item: Any, tree: dict[str, Any], origin: str) -> str:
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
        case "string_type" if isinstance(item["input"], int | float):
            given = f"; got {item['input']!r}, a number to YAML: put it in quotes"
        case _:
            given = f"; got {item['input']!r}"
    return f"{origin}: {key + ': ' if key else ''}{message}{given}"


def _written_path(item: Any, tree: Any) -> list[str]:
    """Leave out of pydantic's path what nobody wrote: the kind of a source, the member of a union."""
    path: list[str] = []
    for part in item["loc"]:
        if part in tree if isinstance(tree, dict) else isinstance(tree, list) and isinstance(part, int):
            tree = tree[part]
            path.append(str(part))
    return [*path, str(item["loc"][-1])] if item["type"] == "missing" else path


def _hint(path: Sequence[str], loc: Sequence[str | int]) -> str:
    """Name the valid key that is nearest to an unknown one: beside it, or anywhere in the tree."""
    *parents, wrong = path
    prefix, siblings = "".join(f"{part}." for part in parents), _siblings(loc[:-1])
    if beside := nearest(wrong, siblings, before=prefix):
        return beside
    if not prefix.startswith("data.sources."):
        by_name = {key.rpartition(".")[2]: key for key in sorted(known_keys())}
        for name in difflib.get_close_matches(wrong, sorted(by_name), n=1):
            return f"; did you mean {by_name[name]}?"
    return f"; valid keys there: {', '.join(siblings)}" if siblings else ""


def _siblings(loc: Sequence[str | int]) -> list[str]:
    """List the valid keys of the section at pydantic's path `loc`."""
    sections: list[type[Section]] = [Config]
    is_name = False
    for part in loc:
        if is_name:  # the name that the user gave to a source
            is_name = False
            continue
        named = [section for section in sections if part in _kinds([section])]
        if named:
            sections = named
            continue
        annotations = [section.model_fields[part].annotation for section in sections if part in section.model_fields]
        sections = [inner for annotation in annotations for inner in _sections_in(annotation)]
        is_name = any(get_origin(annotation) is dict for annotation in annotations)
    return sorted({name for section in sections for name in section.model_fields})


def _kinds(sections: Sequence[type[Section]]) -> list[str]:
    """List the values of `kind` that tell these sections apart."""
    fields = [section.model_fields["kind"] for section in sections if "kind" in section.model_fields]
    return [kind for field in fields for kind in get_args(field.annotation)]


def _sections_in(annotation: Any) -> list[type[Section]]:
    """List the sections that a type names: itself, or what is in a union or a dict."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections_in(part)]


SOURCE_KINDS = tuple(_kinds(_sections_in(AnySource)))
"""The values of `kind` of a source."""
