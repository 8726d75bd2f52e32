"""Seeded mutations of valid files and arguments. Pure: what is valid and a seed in, a name and what is hostile out."""

import copy
import io
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

ESCAPE = "\x1b]0;owned\x07\x1b[2J"
TEXTS = (
    *("", " ", "a b", "a#b", "100%", "Grüße", "..", "../../up", "/", "~", "@", "@nothing", "-x", "--help", "*", "a\nb"),
    *(
        "<script>alert(1)</script>",
        "{{ 7 * 7 }}",
        "'; rm -rf /",
        "$(id)",
        "%s%n",
        "\x00",
        ESCAPE,
        "\ud800",
        "null",
        "1e309",
    ),
    *("n" * 300, "x" * 100_000, "s3://", "s3://nowhere/x", "file:///x", "gs://k:secret@b/x", "con", "NaN", "0x10"),
)
NUMBERS = (-1, 0, 2**31, 2**63, 2**64, -(2**63) - 1, 10**400, 1e308, float("nan"), float("inf"), -0.5, 1e-320)
DEEP = 3000


def wrong_values() -> tuple[Any, ...]:
    """Values of every type, for any place."""
    nested: Any = []
    for _ in range(40):
        nested = [nested]
    return (None, True, False, [], {}, [None], {"": None}, [[[]]], nested, *NUMBERS, *TEXTS[:20])


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value within a tree, its own among them."""
    yield at
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in children:
        yield from places(inner, (*at, key))


def mutated_value(rng: random.Random, value: Any) -> tuple[str, Any]:
    """Change, take out, double or rename something at a random place of a tree; places near its root come more often."""
    paths = list(places(value))
    depth = rng.randint(0, max(map(len, paths)))
    path = rng.choice([path for path in paths if len(path) <= depth] or paths)
    result = copy.deepcopy(value)
    where = "/".join(map(str, path))[:80]
    if not path:
        return "other root", rng.choice(wrong_values())
    parent = result
    for key in path[:-1]:
        parent = parent[key]
    match rng.choice(("set", "set", "set", "drop", "sibling", "double", "rename")):
        case "drop":
            del parent[path[-1]]
            return f"{where} left out", result
        case "sibling" if len(parent) > 1:
            other = rng.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
            parent[path[-1]] = copy.deepcopy(parent[other])
            return f"{where} is its sibling {other}", result
        case "double" if isinstance(parent, list):
            parent.insert(path[-1], copy.deepcopy(parent[path[-1]]))
            return f"{where} twice", result
        case "rename" if isinstance(parent, dict):
            name = rng.choice(TEXTS)
            parent[name] = parent.pop(path[-1])
            return f"{where} renamed {name[:20]!r}", result
        case _:
            wrong = rng.choice(wrong_values())
            parent[path[-1]] = wrong
            return f"{where} = {wrong!r:.40}", result


def damaged(rng: random.Random, content: bytes) -> tuple[str, bytes]:
    """Damage the bytes of a file, whatever they mean."""
    at = rng.randrange(len(content) + 1)
    match rng.randrange(9):
        case 0:
            return "empty", b""
        case 1:
            return f"cut at {at}", content[:at]
        case 2:
            flipped = bytearray(content)
            for _ in range(rng.choice((1, 8, 200)) if content else 0):
                flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            return "bits flipped", bytes(flipped)
        case 3:
            return "zeros", bytes(len(content))
        case 4:
            return "noise", rng.randbytes(min(len(content), 4096))
        case 5:
            return "twice", content * 2
        case 6:
            return "UTF-16", b"\xff\xfe" + content[:4096].decode("latin-1").encode("utf-16-le")
        case 7:
            return "halves swapped", content[at:] + content[:at]
        case _:
            return "pointer of Git LFS", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


def mutated_json(rng: random.Random, content: bytes) -> tuple[str, bytes]:
    """Mutate JSON by its meaning, or in ways that only its text has."""
    match rng.randrange(12):
        case 0:
            return "deep nesting", b"[" * DEEP + b"]" * DEEP
        case 1:
            return "deep objects", b'{"a":' * DEEP + b"1" + b"}" * DEEP
        case 2 if content.startswith(b"{") and content.strip() != b"{}":
            return "first key twice", b"{" + content.strip()[1:-1] + b"," + content.strip()[1:]
        case 3 | 4:
            return damaged(rng, content)
        case _:
            name, value = mutated_value(rng, json.loads(content))
            # 1e309 is a number to JSON, and infinite to Python.
            return name, json.dumps(value).replace("Infinity", "1e309").encode()


def mutated_lines(rng: random.Random, content: bytes) -> tuple[str, bytes]:
    """Mutate a line of JSON Lines, or the order of lines."""
    lines = content.splitlines()
    at = rng.randrange(len(lines))
    if rng.random() < 0.2:
        rng.shuffle(lines)
        return "lines shuffled", b"\n".join(lines)
    name, lines[at] = mutated_json(rng, lines[at])
    return f"line {at + 1}: {name}", b"\n".join(lines) + b"\n"


def mutated_yaml(rng: random.Random, content: bytes) -> tuple[str, bytes]:
    """Mutate YAML by its meaning, or in ways that only its text has."""
    match rng.randrange(12):
        case 0:
            return "deep nesting", b"a: " + b"[" * DEEP + b"]" * DEEP
        case 1:
            laughs = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
            laughs += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
            return "a billion laughs", "\n".join(laughs).encode()
        case 2:
            return "a list that holds itself", b"name: &a [*a]"
        case 3:
            tag = rng.choice(("!!python/object/apply:os.system [true]", "!include x", "!!binary AAAA", "!!set {a, b}"))
            return "a tag", content + f"\nmore: {tag}\n".encode()
        case 4:
            return "key twice", content + b"\n" + content
        case 5:
            return "two documents", content + b"\n---\na: 1\n"
        case 6 | 7:
            return damaged(rng, content)
        case _:
            name, value = mutated_value(rng, yaml.safe_load(content))
            return name, yaml.safe_dump(value, allow_unicode=False).encode()


def mutated_parquet(rng: random.Random, content: bytes) -> tuple[str, bytes]:
    """Mutate a table's columns, types, rows or values, or the file's bytes."""
    if rng.random() < 0.25:
        return damaged(rng, content)
    table = pq.read_table(io.BytesIO(content))
    name = rng.choice(table.column_names)
    at, rows = table.column_names.index(name), table[name].to_pylist()
    match rng.randrange(8):
        case 0:
            said, table = f"no column {name}", table.drop_columns([name])
        case 1:
            said, table = f"{name} of null", table.set_column(at, name, pa.nulls(len(table)))
        case 2:
            said, table = f"{name} as text", table.set_column(at, name, pa.array([str(row) for row in rows]))
        case 3:
            said, table = "no rows", table.slice(0, 0)
        case 4:
            said, table = "rows turned round", table.take(list(reversed(range(len(table)))))
        case 5:
            said, table = "rows twice", pa.concat_tables([table, table])
        case 6:
            said, table = "no metadata", table.replace_schema_metadata(None)
        case _:
            row = rng.randrange(len(rows)) if rows else 0
            value = None
            if rows:
                said, value = mutated_value(rng, [rows[row]])
                rows[row] = value[0] if isinstance(value, list) and value else value
            said = f"{name}[{row}] = {rows[row] if rows else None!r:.40}"
            try:
                column = pa.array(rows, table.schema.field(at).type)
            except (pa.ArrowException, OverflowError, UnicodeEncodeError, TypeError):
                column = pa.array([repr(value) for value in rows])
            table = table.set_column(at, name, column)
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return said, sink.getvalue()


def mutated_tensors(rng: random.Random, content: bytes) -> tuple[str, bytes]:
    """Mutate the header of a safetensors file, or its bytes."""
    size = int.from_bytes(content[:8], "little")
    match rng.randrange(4):
        case 0:
            said, header = mutated_value(rng, json.loads(content[8 : 8 + size]))
            text = json.dumps(header).encode()
            return said, len(text).to_bytes(8, "little") + text + content[8 + size :]
        case 1:
            length = rng.choice((0, 7, 2**40, 2**63, 2**64 - 1))
            return f"header of {length} bytes", length.to_bytes(8, "little") + content[8:]
        case 2:
            return "every number NaN", content[: 8 + size] + b"\xff" * (len(content) - 8 - size)
        case _:
            return damaged(rng, content)


MUTATORS: dict[str, Callable[[random.Random, bytes], tuple[str, bytes]]] = {
    ".json": mutated_json,
    ".jsonl": mutated_lines,
    ".yaml": mutated_yaml,
    ".parquet": mutated_parquet,
    ".safetensors": mutated_tensors,
}


def mutated(rng: random.Random, suffix: str, content: bytes) -> tuple[str, bytes]:
    """Mutate a file's content by its ending."""
    return MUTATORS.get(suffix, damaged)(rng, content)


def replace_file(rng: random.Random, path: Path, others: list[Path]) -> str:
    """Put something hostile where a file is, and say what; `others` are valid files that may be swapped in."""
    content = path.read_bytes()
    if rng.random() < 0.85:
        said, content = mutated(rng, path.suffix, content)
        path.write_bytes(content)
        return said
    path.unlink()
    match rng.randrange(6):
        case 0:
            path.mkdir()
            return "a folder"
        case 1:
            path.symlink_to(path)
            return "a link to itself"
        case 2:
            path.symlink_to(path.parent / "nowhere")
            return "a link to nothing"
        case 3:
            shutil.copy(other := rng.choice([file for file in others if file != path] or [Path(__file__)]), path)
            return f"swapped with {other.name}"
        case 4:
            path.write_bytes(content)
            path.chmod(0)
            return "unreadable"
        case _:
            return "gone"


def mutated_word(rng: random.Random, word: str) -> tuple[str, str]:
    """Mutate an argument, or the value of a key=value."""
    key, equals, value = word.partition("=")
    wrong = rng.choice(
        (*TEXTS, *map(str, NUMBERS), "[", "{a: [1}", "'", "[1, 2", "{}", "[]", "null", "true", value * 2)
    )
    word = f"{key}={wrong}" if equals and rng.random() < 0.9 else wrong
    # The system passes neither to a program.
    word = os.fsdecode(word.encode(errors="surrogateescape") if "\ud800" not in word else b"\xff").replace("\x00", "0")
    return f"{word!r:.60}", word
