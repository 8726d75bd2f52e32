"""YAML files in and out: numbers as everybody writes them, and `include`, by which configs share what they have in common."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import Composer

from arc_ray.contents import MOST_DEPTH
from arc_ray.errors import UserError, nearest

INCLUDE = "include"
"""Key of a config file that names another one, relative to its own folder; it is no part of the config."""

BY_NAME = ("data.sources", "starts", "runs", "tune.space")
"""Sections of names that a user chose: what an including file says of a name replaces all that was said of it."""


MOST_NODES = 1_000_000
"""Keys and values of a config at most, far more than anybody writes."""


class Loader(Composer, yaml.CSafeLoader):
    """YAML 1.1 reads `2e-4` as text; this loader reads it as the number everybody means. It refuses a key that is there
    twice, of which YAML's own would drop the first, and aliases by which a short file becomes endless. libyaml parses, three
    times as fast as Python, which puts the nodes together, where both are seen."""

    def __init__(self, stream: Any) -> None:
        yaml.CSafeLoader.__init__(self, stream)
        Composer.__init__(self)
        self._sizes: dict[int, int] = {}
        self._depth = 0

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        """Count the nodes that there are once every alias stands for what it names."""
        is_alias = self.check_event(yaml.AliasEvent)
        self._depth += 1
        if self._depth > MOST_DEPTH:
            raise RefusedError(f"it is nested more than {MOST_DEPTH} deep")
        node = super().compose_node(parent, index)
        self._depth -= 1
        assert node
        if is_alias and node.end_mark is None:
            raise RefusedError("an alias stands within what it names")
        children = (
            [child for pair in node.value for child in pair] if isinstance(node, yaml.MappingNode) else node.value
        )
        if id(node) not in self._sizes:
            nested = children if isinstance(node, yaml.CollectionNode) else ()
            self._sizes[id(node)] = 1 + sum(self._sizes.get(id(child), 1) for child in nested)
        if self._sizes[id(node)] > MOST_NODES:
            raise RefusedError(f"aliases make more than {MOST_NODES} values of it")
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Look for keys that are written twice: here, because later `<<` puts merged ones among them."""
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                line = key.start_mark.line + 1
                if key.value in lines:
                    raise RefusedError(f"{key.value} is there twice, in lines {lines[key.value]} and {line}; keep one")
                lines[key.value] = line
        return node


class RefusedError(yaml.YAMLError):
    """YAML that this loader does not take: a key written twice in one section, or a tree grown from aliases."""


class Dumper(yaml.SafeDumper):
    """Puts text in quotes that `Loader` would read as a number, such as the name `2e4`."""


for _class in (Loader, Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+$"),
        list("-+0123456789"),
    )


def read_value(text: str) -> Any:
    """Read what a command line gives for a key: a number, true, null, a [list], a {section} or a "text" as YAML has them,
    anything else as the text that it is: paths, questions and "@run" hold what would be marks to YAML.

    Raises yaml.YAMLError.
    """
    if not text.lstrip().startswith(("[", "{", '"', "'")):
        loader = Loader("")
        tag = loader.resolve(yaml.ScalarNode, text.strip(), (True, False))
        is_text = tag not in Loader.yaml_constructors or tag == loader.DEFAULT_SCALAR_TAG
        return text if is_text else loader.construct_object(yaml.ScalarNode(tag, text.strip()))
    node = yaml.compose(text, Loader=Loader)
    if rest := text[node.end_mark.index :].strip():
        raise yaml.YAMLError(f"{rest} follows its end; put the whole of a text in quotes")
    return yaml.load(text, Loader=Loader)  # noqa: S506 - a safe one


def read_tree(path: Path, included_by: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a config file as a nested dict, over the file that it includes, if any. Raises UserError."""
    where = "".join(f", included by {file}" for file in reversed(included_by))
    try:
        text = path.read_text(encoding="utf-8")
        tree = yaml.load(text, Loader=Loader) or {}  # noqa: S506 - a safe one
    except OSError as error:
        hint = nearest(str(path), map(str, Path("configs").rglob("*.yaml")))
        raise UserError(f"config {path}{where}: {error.strerror or error}{hint}") from error
    except RefusedError as error:
        raise UserError(f"config {path}{where}: {error}") from error
    except (
        yaml.YAMLError,
        ValueError,
        RecursionError,
    ) as error:  # what constructors raise for a date that is none, too
        raise UserError(f"config {path}{where} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise UserError(f"config {path}{where}: the top level must be keys and values, not {type(tree).__name__}")
    included = tree.pop(INCLUDE, None)
    if included is None:
        return tree
    if not isinstance(included, str):
        raise UserError(f"config {path}{where}: include names one file, relative to {path.parent}; got {included!r}")
    if (other := path.parent / included).resolve() in {file.resolve() for file in (*included_by, path)}:
        raise UserError(f"config {path}{where}: {included} includes itself")
    return put_over(read_tree(other, (*included_by, path)), tree)


def put_over(under: Mapping[str, Any], over: Mapping[str, Any], section: str = "") -> dict[str, Any]:
    """Put one tree over another: sections key by key, anything else as a whole; see `BY_NAME`."""
    result = dict(under)
    for key, value in over.items():
        below = result.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping) and section not in BY_NAME:
            value = put_over(below, value, f"{section}.{key}" if section else str(key))
        result[key] = value
    return result
