"""Tasks as records: the shapes in which data sets circulate are read alike, and what is no task is named by its line."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from arc_ray.config.sources import JsonLinesSource, ParquetSource
from arc_ray.datasets.reading import load_source
from arc_ray.errors import UserError
from arc_ray.storage import Folder
from arc_ray.tasks.task import Task, task_to_json

GRIDS = [[[i, 1], [2, 3]] for i in range(6)]
PAIRS = [{"input": a, "output": b} for a, b in pairwise(GRIDS)]
TASK = {"train": PAIRS[:3], "test": PAIRS[3:4]}
LISTS = [[pair["input"], pair["output"]] for pair in PAIRS]


def as_floats(value: Any) -> Any:
    return [as_floats(v) for v in value] if isinstance(value, list) else float(value)


def load(kind: str, path: Path, **keys: Any) -> list[Task]:
    source = (JsonLinesSource if kind == "jsonl" else ParquetSource).model_validate(
        {"kind": kind, "path": str(path), **keys}
    )
    return load_source(source, Folder.at("/"))


def write(kind: str, path: Path, records: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "jsonl":
        path.write_text("\n\n".join(json.dumps(record) for record in records) + "\n")
    else:
        pq.write_table(pa.Table.from_pylist(records), path)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("record", "columns"),
    [
        (TASK, {}),
        ({"shown": PAIRS[:3], "asked": PAIRS[3:4]}, {"train": "shown", "test": "asked"}),
        ({"train": LISTS[:3], "test": LISTS[3:4]}, {}),
        ({"train": json.dumps(PAIRS[:3]), "test": json.dumps(LISTS[3:4])}, {}),
        (
            {"a": GRIDS[:3], "b": GRIDS[1:4], "c": GRIDS[3:4], "d": GRIDS[4:5]},
            {"train": ["a", "b"], "test": ["c", "d"]},
        ),
        (
            {
                side: {"input": [p["input"] for p in some], "output": [p["output"] for p in some]}
                for side, some in TASK.items()
            },
            {},
        ),
    ],
)
def test_every_shape_of_a_task_reads_alike(tmp_path: Path, kind: str, record: Any, columns: Any) -> None:
    """Would catch inputs and outputs that change places, and a shape of the hub that nobody can read."""
    file = write(kind, tmp_path / f"data.{kind}", [{"name": "t", "description": "a rule", **record}])
    [task] = load(kind, file, columns={"id": "name", **columns})
    assert task_to_json(task) == TASK | {"description": "a rule"}
    assert task.id == "t"
    [task] = load(kind, tmp_path, columns=columns)
    assert task.id == "data-1"


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_barcs_examples_are_pools_that_are_cut(tmp_path: Path, kind: str) -> None:
    """Would catch BARC's lists of [input, output], whose cells are floats, being no tasks, or all of them shown ones."""
    records = [{"source": "code", "examples": as_floats(LISTS)}, {"source": "code", "examples": as_floats(LISTS[::-1])}]
    write(kind, tmp_path / "deep" / f"data_100k.{kind}", records)
    pools = load(kind, tmp_path, columns={"examples": "examples"})
    assert [(task.id[:10], len(task.train), len(task.test)) for task in pools] == [("data_100k-", 5, 0)] * 2
    assert task_to_json(pools[0])["train"] == PAIRS
    cut = load(kind, tmp_path, columns={"examples": "examples"}, first=1, examples=4, shown=1, limit=1)
    assert [task.id for task in cut] == ["data_100k-1#0", "data_100k-1#1"]
    assert [task_to_json(task)["test"] for task in cut] == [[PAIRS[2]], [PAIRS[4]]]


def test_lines_that_are_lists_are_pools(tmp_path: Path) -> None:
    """Would catch RE-ARC's lists of examples, one task a line, being no tasks."""
    file = write("jsonl", tmp_path / "rearc.jsonl", [PAIRS, PAIRS[:2]])
    assert [len(task.train) for task in load("jsonl", file, columns={"examples": "examples"})] == [5, 2]


def test_only_the_files_asked_for_are_read_and_only_the_selected_records_are_parsed(tmp_path: Path) -> None:
    """Would catch a test split that is trained on, and one bad record that refuses a large set, whatever is taken of it."""
    write("jsonl", tmp_path / "data" / "train-0.jsonl", [TASK, {"nothing": 1}, TASK])
    write("jsonl", tmp_path / "data" / "test-0.jsonl", [{"broken": 1}])
    assert [task.id for task in load("jsonl", tmp_path, files="data/train-*", limit=1)] == ["train-0-1"]
    assert len(load("jsonl", tmp_path, files="data/train-*", skip_invalid=True)) == 2
    (tmp_path / "data" / ".cache").mkdir()
    (tmp_path / "data" / ".cache" / "train-1.jsonl").write_text("{")
    named = {"files": "data/x*", "columns": {"id": "name"}, "skip_invalid": True}
    write("jsonl", tmp_path / "data" / "x.jsonl", [{"name": "a", **TASK}, 3, {"name": "b"}, {"name": "c", **TASK}])
    assert [task.id for task in load("jsonl", tmp_path, **named)] == ["a", "c"]
    with pytest.raises(UserError, match=r"train-0\.jsonl, line 3: task train-0-3: no column train \(it has nothing\)"):
        load("jsonl", tmp_path, files="data/train-*")
    with pytest.raises(UserError, match=r"no \*\.jsonl below it that `files: other\*` matches"):
        load("jsonl", tmp_path, files="other*")


@pytest.mark.parametrize(
    ("line", "columns", "reason"),
    [
        ("{", {}, "line 2 is no JSON"),
        ("3", {}, "line 2: a record is an object of columns; got a int"),
        ("[]", {}, "line 2: a record is an object of columns; got a list"),
        ('{"train": [], "train": []}', {}, "line 2: train is there twice"),
        ('{"train": 1, "test": []}', {}, "line 2: task data-2: nothing to answer"),
        ('{"train": [[[[1]]]], "test": []}', {}, "line 2: task data-2, train pair 0: a pair is an object"),
        (
            '{"train": [[[[1]], [[1.5]]], [[[1]], [[1]]]], "test": []}',
            {},
            "line 2: task data-2, train pair 0, output: 1.5 is",
        ),
        (
            '{"train": {"input": [[[1]], [[2]]], "output": [[[1]], [[2]], [[3]]]}, "test": []}',
            {},
            "line 2: task data-2, train pair 2, input: a grid is a non-empty list of rows",
        ),
        ('{"train": "[", "test": []}', {}, "line 2: task data-2, column train is no JSON"),
        ('{"x": 1}', {"id": "id"}, "line 2: no id in column id (it has x); name the columns in the source's `columns`"),
        (json.dumps({"id": "a", **TASK}), {"id": "id"}, "line 2: task a is there already, at "),
    ],
)
def test_a_line_that_is_no_task_is_refused_by_its_number(tmp_path: Path, line: str, columns: Any, reason: str) -> None:
    """Would catch a traceback, or a message that leaves the user to search 100,000 lines; two tasks of one id; and an
    output without an input that is left out in silence."""
    file = tmp_path / "data.jsonl"
    file.write_text(f"{json.dumps({'id': 'a', **TASK})}\n{line}\n")
    with pytest.raises(UserError) as caught:
        load("jsonl", file, columns=columns)
    assert str(caught.value).startswith(f"{file}, {reason}")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_parquet_and_a_missing_one_are_refused(tmp_path: Path) -> None:
    """Would catch a traceback of pyarrow's."""
    (tmp_path / "a.parquet").write_text("no")
    with pytest.raises(UserError, match=r"a\.parquet is damaged"):
        load("parquet", tmp_path / "a.parquet")
    for kind in ("parquet", "jsonl"):
        with pytest.raises(UserError, match=rf"b\.{kind}"):
            load(kind, tmp_path / f"b.{kind}")
        with pytest.raises(UserError, match="no such folder"):
            load(kind, tmp_path / "nothing")


def test_exactly_one_place_is_named() -> None:
    """Would catch a hub's data set that is silently ignored for a path."""
    for keys in ({}, {"path": "a.jsonl", "hub": "owner/name"}):
        with pytest.raises(ValidationError, match="give either path"):
            JsonLinesSource.model_validate({"kind": "jsonl", **keys})


def test_a_data_set_of_the_hub_is_read_from_its_cache_or_refused_in_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch the hub's own errors, and a data set that is fetched again though it is on this machine."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    source = JsonLinesSource(kind="jsonl", hub="owner/name", files="train*")
    with pytest.raises(UserError, match="hub: owner/name: this data set can be had neither from"):
        load_source(source, Folder.at("/"))
    kept = tmp_path / "datasets--owner--name"
    write("jsonl", kept / "snapshots" / ("a" * 40) / "train.jsonl", [TASK])
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("a" * 40)
    assert [task.id for task in load_source(source, Folder.at("/"))] == ["train-1"]
