"""Datasets without Ray: block boundaries, tables, what counts as usable, what is asked, and who may extend what."""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from builders import augmented
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from small_clone import write_clone

from arc_ray.config.sources import AnySource, ArcGenSource, CountingSource, PluginSource, RearcSource
from arc_ray.datasets.blocks import (
    STATS,
    Block,
    examples_table,
    pairs_in,
    read_stats,
    tasks_in,
    usable_rows,
    write_block,
)
from arc_ray.datasets.export import check_format, export_datasets
from arc_ray.datasets.makers import GeneratedSource, claim_dataset, dataset_folder, requests_of, task_ids_of
from arc_ray.datasets.manifest import (
    BLOCK_SECONDS,
    PATIENCE,
    PROBE_EXAMPLES,
    Tally,
    blocks_from,
    empty_tallies,
    is_settled,
    make_manifest,
)
from arc_ray.datasets.reading import check_supply, load_source, within_quantiles
from arc_ray.errors import UserError
from arc_ray.storage import Folder
from arc_ray.tasks.counting import counting_task
from arc_ray.tasks.examples import Example
from arc_ray.tasks.generators import rearc_ids
from arc_ray.tasks.task import Grid, Pair, Task, same_grid, task_to_json
from arc_ray.views.augmentation import Augmentation

grids = hnp.arrays(np.uint8, st.tuples(st.integers(1, 30), st.integers(1, 30)), elements=st.integers(0, 9))
FAILED = Example("gave_up", 100, Counter(degenerate=100))


def accepted(number: int) -> Example:
    """An example that differs from that of any other number below 2**12, also up to symmetry and colours."""
    cells = [0, 1, 1, *(number >> bit & 1 for bit in range(12))]
    pair = Pair(np.array([cells], np.uint8), np.array([[0, 0, 1]], np.uint8))  # the output tells which way round it is
    return Example("accepted", 1, Counter(), pair, 0.5)


def stats_of(start: int, numbers: Iterable[int | None]) -> pa.Table:
    table = examples_table(start, [FAILED if number is None else accepted(number) for number in numbers])
    return table.select(STATS.names)


def rearc_source(**changes: Any) -> RearcSource:
    return RearcSource.model_validate({"kind": "rearc", **changes})


def arcgen_source(path: Any, **changes: Any) -> ArcGenSource:
    return ArcGenSource.model_validate({"kind": "arcgen", "path": str(path), "time_limit_seconds": 10, **changes})


def make_here(source: GeneratedSource, storage: Folder) -> dict[str, Any]:
    """Make a dataset as `arc-ray generate` does, but in this process; return its manifest."""
    folder, entries = dataset_folder(storage, source.dataset), {}
    claim_dataset(folder, source)
    for tally in empty_tallies(source, task_ids_of(source)):
        while blocks := tally.next_blocks(source.first + source.examples):
            for block in blocks:
                write_block(source, block, folder)
            tally.add(read_stats(folder, blocks))
        entries[tally.task_id] = tally.entry()
    manifest = make_manifest(folder.read_json("dataset.json"), entries)
    folder.write_json("manifest.json", manifest)
    return manifest


GOLDEN_SOURCES: dict[str, GeneratedSource] = {
    "rearc": rearc_source(tasks=["11852cab", "00d62c1b"], examples=25, max_side=20, difficulty=(0.1, 0.6)),
    "plugin": PluginSource(
        kind="plugin", generate="example_plugins:few", dataset="mine", task_id="few", examples=25, seed=3
    ),
    "counting": CountingSource(kind="counting", examples=60, max_side=9, connectivity=4),
}
GOLDEN = {
    "rearc": "d72b2917c0a036d4",
    "arcgen": "6e0c8ee6cdc49669",
    "plugin": "86a7c2be5c7bd9ee",
    "counting": "d7300a43bee8f2ed",
}
"""Kind of source -> digest of a dataset: names, columns and rows of its blocks, and its manifest."""


@pytest.mark.parametrize("kind", GOLDEN)
def test_a_dataset_is_what_it_was(kind: str, tmp_path):
    """Would catch examples, statistics, boundaries, duplicates or counts that change: a dataset would be of two makings."""
    storage = Folder.at(str(tmp_path))
    clone = write_clone(tmp_path / "clone", "00000001", "00000002")
    source = arcgen_source(clone, examples=25, seed=2) if kind == "arcgen" else GOLDEN_SOURCES[kind]
    manifest = make_here(source, storage)
    assert manifest.pop("made_with")["layout"] == 2
    folder, found = dataset_folder(storage, source.dataset), hashlib.blake2b(digest_size=8)
    for name in folder.names():
        if name.startswith("part-"):
            table = folder.read_parquet(name)
            found.update(json.dumps([name, str(table.schema), table.to_pydict()]).encode())
    found.update(json.dumps(manifest).encode())
    assert found.hexdigest() == GOLDEN[kind]


@given(st.floats(1e-4, 30.0))
def test_blocks_cover_every_index_once_and_have_round_boundaries(seconds: float):
    """Would catch a gap, an overlap, a block so long that a crash hurts, or a boundary that makes 1000 cost 1200."""
    blocks = list(itertools.takewhile(lambda block: block.start < 1500, blocks_from("t", 0, seconds)))
    assert blocks[0].start == 0
    assert all(a.stop == b.start for a, b in itertools.pairwise(blocks))
    assert {100, 1000} <= {block.stop for block in blocks}
    for block in blocks:
        size = block.stop - block.start
        assert size == 1 or size * seconds <= BLOCK_SECONDS
        assert size <= max(50, block.start / 2)


def test_blocks_go_on_from_any_boundary():
    blocks = list(itertools.islice(blocks_from("t", 0, 0.01), 20))
    for i, block in enumerate(blocks):
        assert list(itertools.islice(blocks_from("t", block.start, 0.01), 20 - i)) == blocks[i:]


@given(st.sampled_from(["007bbfb7", "my-own-task", "a.b"]), st.integers(0, 10**6), st.integers(1, 1000))
def test_block_names_read_back(task_id: str, start: int, size: int):
    block = Block(task_id, start, start + size)
    assert Block.named(block.name) == block


@given(st.lists(st.none() | st.tuples(grids, grids), min_size=1, max_size=6))
def test_pairs_survive_the_table(values: list[tuple[Grid, Grid] | None]):
    """Would catch grids of different shapes that run into each other, and failures that shift their neighbours."""
    examples = [FAILED if v is None else Example("accepted", 1, Counter(), Pair(*v)) for v in values]
    table = examples_table(0, examples)
    kept = [i for i, value in enumerate(values) if value is not None]
    for i, pair in zip(kept, pairs_in(table.take(pa.array(kept, pa.int64()))), strict=True):
        value = values[i]
        assert value is not None
        assert same_grid(pair.input, value[0])
        assert same_grid(pair.output, value[1])
    assert table["input"].null_count == len(values) - len(kept)


def test_counting_tasks_survive_the_table():
    source = CountingSource(kind="counting")
    tasks = [counting_task(source, index) for index in range(30)]
    table = examples_table(0, [Example("accepted", 1, Counter(), task=task) for task in tasks])
    assert [task_to_json(task) for task in tasks_in(table, "counting", None)] == [task_to_json(task) for task in tasks]
    assert [task.id for task in tasks_in(table.take([7, 3]), "counting", None)] == [tasks[7].id, tasks[3].id]


@given(st.lists(st.none() | st.integers(0, 9), min_size=1, max_size=30), st.integers(0, 30))
def test_usable_rows_keep_the_lowest_index_and_never_change(numbers: list[int | None], cut: int):
    """Would catch duplicates told apart by who was first to be made: extension would then move the kept ones."""
    stats = stats_of(0, numbers)
    rows = usable_rows(stats).tolist()
    assert rows == [i for i, n in enumerate(numbers) if n is not None and n not in numbers[:i]]
    assert usable_rows(stats.slice(0, cut)).tolist() == [row for row in rows if row < cut]


@given(grids, grids, st.integers(0, 7), st.permutations(range(10)))
def test_examples_that_augmentation_turns_into_one_another_count_once(
    given_grid: Grid, wanted: Grid, symmetry: int, colors: list[int]
):
    """Would catch held-out examples that a model has met in training, turned or in other colours."""
    pair = Pair(given_grid, wanted)
    [twin] = augmented(Task("t", (pair,), ()), Augmentation(symmetry, tuple(colors))).train
    other = Pair(given_grid, np.ones((1, 1), np.uint8))  # the same input: not told apart either
    made = [Example("accepted", 1, Counter(), p, 0.5) for p in (pair, twin, other)]
    assert usable_rows(examples_table(0, made)).tolist() == [0]
    same_output = Pair(np.concatenate([given_grid, given_grid], axis=1)[:, :30], wanted)
    rows = usable_rows(examples_table(0, [made[0], Example("accepted", 1, Counter(), same_output, 0.5)])).tolist()
    assert rows == ([0] if same_grid(given_grid, same_output.input) else [0, 1])


def test_a_tally_asks_for_a_probe_then_all_then_replacements():
    tally = Tally("t", 0.02, probe=True)
    probe = tally.next_blocks(100)
    assert probe == [Block("t", 0, 10)]
    tally.add(stats_of(0, [*range(9), 0]))
    rest = tally.next_blocks(100)
    assert (rest[0].start, rest[-1].stop) == (10, 100)
    tally.add(stats_of(10, range(10, 100)))
    assert [block.start for block in tally.next_blocks(100)] == [100]
    assert tally.next_blocks(99) == []
    assert tally.entry()["duplicates"] == 1


@given(st.integers(1, 500))
def test_a_task_that_yields_nothing_or_too_little_is_not_tried_for_ever(want: int):
    assert is_settled(PROBE_EXAMPLES, 0, want)
    assert is_settled(PATIENCE * want, want - 1, want)
    assert not is_settled(want, want - 1, want) or want == 1


def test_sources_that_share_a_dataset_are_merged():
    sources: dict[str, AnySource] = {
        "train": rearc_source(tasks=["00d62c1b", "007bbfb7"], examples=50),
        "held_out": rearc_source(tasks=["007bbfb7"], first=50, examples=20, time_limit_seconds=90),
        "other": rearc_source(tasks=["00d62c1b"], dataset="other", seed=1),
    }
    shared, other = requests_of(sources)
    assert dict(shared.wanted) == {"007bbfb7": 70, "00d62c1b": 50}
    assert shared.source.time_limit_seconds == 90  # pyright: ignore[reportAttributeAccessIssue]
    assert (other.source.dataset, dict(other.wanted)) == ("other", {"00d62c1b": 100})


def test_sources_that_share_a_dataset_must_mean_the_same_examples():
    sources: dict[str, AnySource] = {"a": rearc_source(), "b": rearc_source(max_side=20, seed=3)}
    with pytest.raises(UserError, match=r"a and b share the dataset 'rearc' \(differs in: max_side, seed\)"):
        requests_of(sources)


def test_a_folder_is_claimed_by_what_its_examples_are(tmp_path):
    folder = Folder.at(str(tmp_path))
    claim_dataset(folder, rearc_source())
    claim_dataset(
        folder, rearc_source(examples=7, limit=3, first=2, shown=3, pso_quantiles=(0, 0.5), time_limit_seconds=1)
    )
    with pytest.raises(UserError, match=r"differs in: difficulty"):
        claim_dataset(folder, rearc_source(difficulty=(0, 0.5)))
    with pytest.raises(UserError, match="kind"):
        claim_dataset(folder, CountingSource(kind="counting"))
    record = folder.read_json("dataset.json")
    record["made_with"]["reasoning-gym"] = "0.0.1"
    folder.write_json("dataset.json", record)
    with pytest.raises(UserError, match=r"made_with\.reasoning-gym"):
        claim_dataset(folder, rearc_source())


def test_an_unknown_task_is_named():
    with pytest.raises(UserError, match=r"007bbfb8.*did you mean 007bbfb7"):
        requests_of({"a": rearc_source(tasks=["007bbfb8"])})


def test_all_tasks_are_taken_but_for_those_that_cannot_be_made(tmp_path, caplog):
    entries = {task_id: {"examples": 0 if task_id in ("007bbfb7", "00d62c1b") else 110} for task_id in rearc_ids()}
    check_supply(rearc_source(max_side=8), {"tasks": entries}, Folder.at(str(tmp_path)))
    assert "2 tasks have too few examples: 007bbfb7 00d62c1b" in caplog.text


@pytest.mark.parametrize(
    ("task_id", "message"),
    [
        ("bad0rais", r"generator_error 1000\).*LookupError: no such colour"),
        ("bad0size", r"invalid_grid 1000\).*30 rows of \[31\] cells"),
        ("bad0hang", r"of 10 attempts 0 were rejected, 10 timed out"),
    ],
)
def test_generators_of_a_clone_that_yield_nothing(task_id: str, message: str, tmp_path, monkeypatch, caplog):
    """Would catch a generator that raises, draws over 30 cells or hangs, and is tried for ever or reported without its why;
    and one bad generator that loses the others, where all are asked for."""
    monkeypatch.setattr("arc_ray.datasets.manifest.FIRST_EXAMPLES", 10)
    clone, storage = write_clone(tmp_path / "clone", task_id, "00000001"), Folder.at(str(tmp_path))
    folder = dataset_folder(storage, "arcgen")
    manifest = make_here(every := arcgen_source(clone, examples=20, time_limit_seconds=0.2), storage)
    with pytest.raises(UserError, match=f"task {task_id} has 0 usable examples, 2 are needed: .*{message}"):
        check_supply(arcgen_source(clone, tasks=[task_id]), manifest, folder)
    check_supply(every, manifest, folder)
    assert f"1 tasks have too few examples: {task_id}; manifest.json says why" in caplog.text
    assert [task.id for task in load_source(every, storage)] == ["00000001"]


def test_a_clones_manifest_says_what_it_has_and_lacks(tmp_path):
    """Would catch examples that seem verified, and a changed clone whose examples are mixed with those of the old one."""
    storage = Folder.at(str(tmp_path))
    manifest = make_here(
        source := arcgen_source(write_clone(tmp_path / "clone", "00000001", "00000002"), examples=5), storage
    )
    assert manifest["made_with"]["verifiers"] == "none"
    assert list(manifest["tasks"]) == ["00000001", "00000002"]
    folder = dataset_folder(storage, "arcgen")
    claim_dataset(folder, source.model_copy(update={"path": write_clone(tmp_path / "moved", "00000001", "00000002")}))
    changed = write_clone(tmp_path / "changed", "00000001", "00000002", "0000dead")
    with pytest.raises(UserError, match=r"made_with\.code"):
        claim_dataset(folder, source.model_copy(update={"path": changed}))


@given(st.lists(st.floats(0, 1), max_size=50), st.floats(0, 1))
def test_quantiles_split_without_overlap_or_loss(values: list[float], cut: float):
    array = np.array(values)
    low, high = within_quantiles(array, 0, cut), within_quantiles(array, cut, 1)
    assert sorted([*low, *high]) == list(range(len(values)))
    assert not len(low) or not len(high) or array[low].max() <= array[high].min()


def test_tables_have_no_metadata_that_could_differ():
    """Would catch pandas' or a writer's metadata (index, versions, times) in the blocks."""
    table = examples_table(0, [accepted(1), FAILED])
    assert table.schema.metadata is None
    assert table.schema.field("input").type == pa.list_(pa.list_(pa.uint8()))


def test_datasets_are_exported_by_name(tmp_path):
    """Would catch a format that the command line offers and nobody writes."""
    with pytest.raises(UserError, match="arc_json, rearc"):
        check_format("csv")
    storage, source = Folder.at(str(tmp_path)), CountingSource(kind="counting", examples=10, max_side=6)
    manifest = make_here(source, storage)
    manifests = {"counting": manifest}
    [line] = export_datasets(storage, manifests, "arc_json")
    written = list((tmp_path / "export/counting/arc_json").glob("*.json"))
    assert len(written) == manifest["examples"]
    assert line.endswith(f"export/counting/arc_json: {len(written)} tasks")
    [line] = export_datasets(storage, manifests, "rearc")
    assert "--export arc_json" in line


def test_a_block_whose_columns_hold_something_else_is_named_by_every_reader(tmp_path):
    """Would catch a traceback of the parser of a column, where the table itself is whole."""
    storage, source = Folder.at(str(tmp_path)), CountingSource(kind="counting", examples=10, max_side=6)
    manifests, folder = {"counting": make_here(source, storage)}, storage / "data" / "counting"
    [block] = [name for name in folder.names() if name.endswith(".parquet")]
    table = folder.read_parquet(block)
    at = table.column_names.index("questions")
    folder.write_parquet(block, table.set_column(at, "questions", pa.array(["[["] * len(table))))
    for read in (lambda: load_source(source, storage), lambda: [*export_datasets(storage, manifests, "arc_json")]):
        with pytest.raises(UserError, match=f"{folder.uri} is damaged or was changed: .*put a whole copy"):
            read()
