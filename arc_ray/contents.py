"""What files hold: parsed, held against the shape that their readers rely on, or one UserError that names file and place.

A shape is a type that pydantic knows, such as those of `arc_ray.runs.shapes`.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from pydantic import TypeAdapter, ValidationError

from arc_ray.errors import IN_THE_WAY, UserError, one_line

MOST_ALIASES = 30
"""With twice as many, a file of a hundred bytes can be read as a billion values."""
MOST_DEPTH = 100
DEEPER = np.zeros(256, np.int32)
"""What each byte of JSON adds to the depth."""
DEEPER[list(b"[{")], DEEPER[list(b"]}")] = 1, -1


@contextmanager
def damaged(file: str) -> Iterator[None]:
    """Turn whatever a parser raises for the content of a file into one UserError that names it."""
    try:
        yield
    except Exception as error:  # every library has kinds of its own
        is_passing = isinstance(error, OSError) and error.errno not in (None, *IN_THE_WAY)
        if is_passing or isinstance(error, UserError | MemoryError):
            raise
        reason = one_line(error) or type(error).__name__
        reason += " is missing" if isinstance(error, KeyError) else ""
        raise UserError(f"{file} is damaged or was changed: {reason}; put a whole copy in its place") from error


def checked(value: Any, shape: Any) -> Any:
    """Return a value that has a shape. Raises ValueError that says where it has not."""
    try:
        _adapter(shape).validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        got = f"; got {first['input']!r:.60}" if first["type"] != "missing" else ""
        raise ValueError(f"{'.'.join(map(str, first['loc'])) or 'it'}: {first['msg']}{got}") from error
    return value


@cache
def _adapter(shape: Any) -> TypeAdapter[Any]:
    return TypeAdapter(shape)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


DECODER = json.JSONDecoder(parse_constant=_refuse)


def parse_json(content: bytes, shape: Any = Any) -> Any:
    """Parse JSON. Raises ValueError and RecursionError."""
    try:
        if content.count(b"[") + content.count(b"{") > MOST_DEPTH:
            depth = np.cumsum(DEEPER[np.frombuffer(content, np.uint8)]).max(initial=0)
            if depth > MOST_DEPTH:
                raise ValueError(f"it is nested {depth} deep")
        value = DECODER.decode(content.decode(json.detect_encoding(content), "surrogatepass"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is no JSON: {error}") from error
    if b"\\u" in content:
        json.dumps(value, ensure_ascii=False).encode()  # half of a character can be written nowhere
    return checked(value, shape)


def parse_yaml(content: bytes, shape: Any) -> Any:
    """Parse YAML that a program wrote. Raises ValueError, RecursionError and yaml.YAMLError."""
    aliases = depth = 0
    for event in yaml.parse(content, yaml.CSafeLoader):
        aliases += isinstance(event, yaml.AliasEvent)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if aliases > MOST_ALIASES or depth > MOST_DEPTH:
            raise ValueError(f"it has more than {MOST_ALIASES} aliases, or is nested more than {MOST_DEPTH} deep")
    return checked(yaml.load(content, yaml.CSafeLoader), shape)


def parse_parquet(content: bytes, schema: pa.Schema | None = None) -> pa.Table:
    """Parse Parquet; with a `schema`, return its columns in its types. Raises what pyarrow raises."""
    table = pq.read_table(pa.BufferReader(content))
    table.validate(full=True)
    return table if schema is None else table.select(schema.names).cast(schema)


def parse_lines(content: bytes, shape: Any, where: str) -> tuple[list[Any], int]:
    """Parse a JSON value a line; return the values, and how many bytes of a last line that is not whole were left out.

    Raises UserError for any other line that does not have the shape; `where` says where these lines are.
    """
    lines, _, last = content.rpartition(b"\n")
    values = []
    for number, line in enumerate(lines.splitlines(), start=1):
        with damaged(f"{where}, line {number}"):
            values += [parse_json(line, shape)] if line else []
    try:
        return [*values, *([parse_json(last, shape)] if last else [])], 0
    except ValueError:
        return values, len(last)
