"""Generation on Ray: the same bytes whoever makes them, in whatever order, after whatever interruption."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest
from small_clone import write_clone
from test_datasets import arcgen_source, make_here
from training import descendants, kill_driver, wait_for

from arc_ray.config.sources import AnySource, CountingSource, PluginSource, RearcDumpSource, RearcSource
from arc_ray.datasets.export import export_arc_json, export_rearc
from arc_ray.datasets.makers import maker_of
from arc_ray.datasets.manifest import Tally
from arc_ray.datasets.reading import load_source
from arc_ray.errors import UserError
from arc_ray.storage import Folder
from arc_ray.tasks.arc import folder_tasks, parse_all
from arc_ray.tasks.counting import counting_task
from arc_ray.tasks.generators import rearc_ids
from arc_ray.tasks.selection import given_tasks
from arc_ray.tasks.task import Pair, Task, task_to_json

TASKS = ["007bbfb7", "00d62c1b", "11852cab", "25d487eb", "484b58aa"]

Generate = Callable[..., dict[str, Any]]


@pytest.fixture
def generate(ray_session: None) -> Generate:
    """`ensure_datasets` of one source; returns the manifest."""
    from arc_ray.datasets.generate import ensure_datasets

    def run(source: AnySource, folder: Path, **options: Any) -> dict[str, Any]:
        [manifest] = ensure_datasets({"source": source}, Folder.at(str(folder)), **options).values()
        return manifest

    return run


def rearc_source(**changes: Any) -> RearcSource:
    return RearcSource.model_validate({"kind": "rearc", "tasks": TASKS, "examples": 60, **changes})


def plugin_source(generate: str, **changes: Any) -> PluginSource:
    values = {"kind": "plugin", "generate": f"example_plugins:{generate}", "dataset": "mine", "task_id": "my-task"}
    return PluginSource.model_validate({**values, "examples": 30, **changes})


def files_of(folder: Path) -> dict[str, bytes]:
    """All that must be reproducible: everything but timings and what a killed writer left."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in files
        if "timings" not in path.parts and ".tmp-" not in path.name
    }


class Watcher:
    """Keeps what it is told of progress."""

    def __init__(self) -> None:
        self.news: list[tuple[str, float, float]] = []

    def advance(self, what: str, done: float, total: float, detail: str = "") -> None:
        self.news.append((what, done, total))


def modified(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("data/*/part-*")}


def grids_of(pairs: tuple[Pair, ...] | list[Pair]) -> list[Any]:
    return [(pair.input.tolist(), None if pair.output is None else pair.output.tolist()) for pair in pairs]


@pytest.fixture(scope="module")
def unbroken(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two workers make of the standard source."""
    from arc_ray.datasets.generate import ensure_datasets

    folder = tmp_path_factory.mktemp("unbroken")
    ensure_datasets({"source": rearc_source()}, Folder.at(str(folder)), num_workers=2)
    return folder


@pytest.mark.parametrize("num_workers", [1, 4])
def test_bytes_do_not_depend_on_the_number_of_workers(num_workers, generate, unbroken, tmp_path, monkeypatch):
    monkeypatch.setattr("arc_ray.datasets.generate.bundle_limits", lambda num_workers: (0, 0))  # every block on its own
    generate(rearc_source(), tmp_path, num_workers=num_workers)
    assert files_of(tmp_path) == files_of(unbroken)


@pytest.mark.parametrize("num_workers", [1, 8, 300])
def test_bundles_hold_every_block_once_longest_first_and_shrink(num_workers):
    """Would catch a block left out or made twice, a long block that starts last and keeps a cluster waiting, and a bundle
    of one task's blocks only, which takes ten times as long where that task was estimated wrongly."""
    from arc_ray.datasets.generate import bundle_limits, bundles_of

    seconds = {task_id: maker_of(rearc_source()).seconds(task_id) for task_id in rearc_ids()[:80]}
    blocks = [b for i, each in seconds.items() for b in Tally(i, each, probe=False).blocks_to(1000)]
    costs = {block: seconds[block.task_id] * (block.stop - block.start) for block in blocks}
    bundles = bundles_of(blocks, seconds, num_workers)
    order = [block for bundle in bundles for block in bundle]
    assert sorted(order) == sorted(blocks)
    assert [costs[block] for block in order] == sorted(costs.values(), reverse=True)
    assert [block.start for block in order] == [b.start for b in sorted(order, key=lambda b: (-costs[b], b.start))]
    totals = [sum(costs[block] for block in bundle) for bundle in bundles]
    shortest, longest = bundle_limits(num_workers)
    assert max(totals) <= max(longest, max(costs.values())) + 1e-9
    limit = max(shortest, sum(totals) / num_workers)
    assert max(totals[num_workers:][-num_workers:], default=0) <= limit  # of those that do not start at once
    last = zip(totals[-num_workers:], bundles[-num_workers:], strict=True)
    assert all(total <= limit or len(bundle) == 1 for total, bundle in last)  # only a block on its own may be longer
    assert totals[-1] <= totals[0]


def test_a_thousand_nodes_do_not_wait_for_the_driver():
    """Would catch bundles so short that the driver, which serves one worker after the other, cannot hand them out."""
    from arc_ray.datasets.generate import DRIVER_SECONDS, bundles_of

    num_workers, seconds = 16_000, dict.fromkeys(rearc_ids(), 100.0)
    blocks = [b for i in seconds for b in Tally(i, 0.002, probe=False).blocks_to(400_000)]
    bundles = bundles_of(blocks, seconds, num_workers)
    work = sum(seconds[block.task_id] * (block.stop - block.start) for block in blocks) / num_workers
    assert len(bundles) >= num_workers
    assert len(bundles) * DRIVER_SECONDS < work / 2


def test_every_example_passes_its_verifier_and_none_is_there_twice(unbroken):
    """Would catch a dataset like reasoning-gym's own, of which 2.6 % are wrong, trivial or repeated."""
    from reasoning_gym.arc.rearc_utils import verifiers

    tasks = load_source(rearc_source(), Folder.at(str(unbroken)))
    assert [(task.id, len(task.train)) for task in tasks] == [(task_id, 60) for task_id in TASKS]
    for task in tasks:
        verify = getattr(verifiers, f"verify_{task.id}")
        for given, wanted in grids_of(task.train):
            assert verify(tuple(map(tuple, given))) == tuple(map(tuple, wanted))
            assert given != wanted
        assert len({str(given) for given, _ in grids_of(task.train)}) == 60


def test_the_manifest_counts_what_the_blocks_hold(unbroken):
    manifest = json.loads((unbroken / "data/rearc/manifest.json").read_text())
    entries = manifest["tasks"]
    assert sorted(entries) == TASKS
    assert entries["11852cab"]["rejected"]["degenerate"] > 5
    for entry in [manifest, *entries.values()]:
        assert entry["indices"] == entry["examples"] + entry["duplicates"] + entry["gave_up"] + len(entry["timed_out"])
        assert entry["attempts"] == entry["examples"] + entry["duplicates"] + sum(entry["rejected"].values())
    assert manifest["attempts"] == sum(entry["attempts"] for entry in entries.values())
    assert (manifest["kind"], manifest["seed"], manifest["num_tasks"]) == ("rearc", 0, 5)
    assert 0.3 < entries["00d62c1b"]["rng_difficulty"] < 0.7


def test_a_second_call_does_nothing_and_needs_no_ray(unbroken):
    before = modified(unbroken)
    program = (
        "from test_generate import *; import ray; from arc_ray.datasets.generate import ensure_datasets;"
        f"ensure_datasets({{'s': rearc_source()}}, Folder.at({str(unbroken)!r})); print(ray.is_initialized())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    assert modified(unbroken) == before


def test_interrupted_anywhere_it_ends_the_same(generate, unbroken, tmp_path):
    """Would catch resuming by counting, or trusting a file that is half written."""
    shutil.copytree(unbroken, tmp_path, dirs_exist_ok=True)
    data = tmp_path / "data/rearc"
    (data / "manifest.json").unlink()
    parts = sorted(data.glob("part-*"))
    for path in parts[::3]:
        path.rename(path.with_name(path.name + ".tmp-0123abcd"))
    kept = modified(tmp_path)
    watcher = Watcher()
    generate(rearc_source(), tmp_path, progress=watcher)
    assert files_of(tmp_path) == files_of(unbroken)
    assert {name: time for name, time in modified(tmp_path).items() if name in kept} == kept
    lost = sum(int(path.stem.split("-")[3]) - int(path.stem.split("-")[2]) for path in parts[::3])
    assert watcher.news[-1] == ("rearc, examples", lost, lost)


def test_asking_for_more_extends_and_ends_like_asking_at_once(generate, tmp_path):
    few, many = tmp_path / "few", tmp_path / "many"
    generate(rearc_source(tasks=TASKS[:2], examples=20), few)
    before_bytes, before_times = files_of(few), modified(few)
    extended = rearc_source(tasks=TASKS[1:3], examples=150)
    generate(extended, few)
    after = files_of(few)
    for name, content in before_bytes.items():
        assert after[name] == content or name.endswith("manifest.json")
    assert before_times.items() <= modified(few).items()
    make_here(extended, Folder.at(str(many)))
    theirs = files_of(many)
    assert all(after[name] == content for name, content in theirs.items() if "part-" in name)
    ours = json.loads(after["data/rearc/manifest.json"])["tasks"]
    assert json.loads(theirs["data/rearc/manifest.json"])["tasks"].items() <= ours.items()
    assert ours["007bbfb7"]["examples"] >= 20


def test_a_dataset_of_another_making_is_refused(generate, unbroken):
    with pytest.raises(UserError, match=r"differs in: max_side.*another `dataset`"):
        generate(rearc_source(max_side=20), unbroken)
    with pytest.raises(UserError, match=r"differs in: seed"):
        load_source(rearc_source(seed=1), Folder.at(str(unbroken)))


def test_reading_needs_what_was_asked(unbroken, tmp_path):
    storage = Folder.at(str(unbroken))
    with pytest.raises(UserError, match="run `arc-ray generate`"):
        load_source(rearc_source(), Folder.at(str(tmp_path)))
    with pytest.raises(UserError, match=r"has \d+ of 500 examples of task 007bbfb7; run `arc-ray generate` first"):
        load_source(rearc_source(examples=500), storage)
    with pytest.raises(UserError, match="has 0 of 60 examples of task ff805c23"):
        load_source(rearc_source(tasks=["ff805c23"]), storage)


def test_windows_and_quantiles_select_within_each_task(unbroken):
    """Would catch a held-out source that shares examples with the training source."""
    storage = Folder.at(str(unbroken))
    whole = load_source(rearc_source(), storage)
    first, second = (load_source(rearc_source(first=f, examples=30), storage) for f in (0, 30))
    easy, hard = (load_source(rearc_source(pso_quantiles=q), storage) for q in ((0, 0.25), (0.25, 1)))
    for task, a, b, e, h in zip(whole, first, second, easy, hard, strict=True):
        assert grids_of(a.train) + grids_of(b.train) == grids_of(task.train)
        assert (len(e.train), len(h.train)) == (15, 45)
        assert sorted(grids_of(e.train) + grids_of(h.train)) == sorted(grids_of(task.train))
        assert size_of(e) < size_of(h)
    cut = load_source(rearc_source(shown=3, limit=2), storage)
    assert [(len(t.train), len(t.test)) for t in cut] == [(3, 1)] * 30
    assert grids_of(cut[0].pairs) == grids_of(whole[0].train[:4])


def test_a_selection_that_leaves_no_task_is_refused(unbroken):
    for changes in (
        {"examples": 3, "shown": 3},
        {"examples": 6, "shown": 3, "pso_quantiles": (0, 0.5)},
        {"examples": 1},
    ):
        with pytest.raises(UserError, match=r"a task is made of \d; raise `examples`"):
            load_source(rearc_source(**changes), Folder.at(str(unbroken)))


def size_of(task: Task) -> float:
    return sum(pair.input.size + (0 if pair.output is None else pair.output.size) for pair in task.train) / len(
        task.train
    )


def test_a_hanging_generator_is_interrupted_and_named(generate, tmp_path):
    """Would catch a limit that only the driver keeps: the worker would hang on and the block be lost."""
    source = plugin_source("sometimes_hangs", examples=20, time_limit_seconds=0.2)
    manifest = generate(source, tmp_path)
    timed_out = manifest["tasks"]["my-task"]["timed_out"]
    assert timed_out
    assert manifest["timed_out"] == [["my-task", index] for index in timed_out]
    [task] = load_source(source, Folder.at(str(tmp_path)))
    assert len(task.train) == 20


def test_duplicates_are_replaced_until_that_is_hopeless(generate, tmp_path):
    source = plugin_source("few", examples=25)
    manifest = generate(source, tmp_path)
    assert manifest["duplicates"] > 5
    [task] = load_source(source, Folder.at(str(tmp_path)))
    assert len({str(given) for given, _ in grids_of(task.train)}) == 25
    greedy = plugin_source("few", examples=60)
    assert generate(greedy, tmp_path)["examples"] == 40
    assert len(load_source(greedy, Folder.at(str(tmp_path)))[0].train) == 40


@pytest.mark.parametrize(
    ("generator", "changes", "message"),
    [
        ("returns_rubbish", {}, r"return a pair \(input, output\)"),
        ("always_raises", {}, r"of 2000 attempts 2000 were rejected \(generator_error 2000\).*no such colour"),
        ("mirrored", {"verify": "example_plugins:refuse"}, r"0 usable examples.*\(unverified \d+\)"),
        ("mirrored", {"max_side": 2}, r"0 usable examples.*\(too_large \d+\)"),
        ("absent", {}, "has no absent"),
    ],
)
def test_a_plugin_that_cannot_work_is_reported_once_and_clearly(generator, changes, message, generate, tmp_path):
    with pytest.raises(UserError, match=message):
        generate(plugin_source(generator, **changes), tmp_path)


def test_a_changed_plugin_does_not_extend_its_old_dataset(generate, tmp_path):
    generate(plugin_source("mirrored"), tmp_path)
    record = json.loads((tmp_path / "data/mine/dataset.json").read_text())
    record["made_with"]["code"] = "0" * 16
    (tmp_path / "data/mine/dataset.json").write_text(json.dumps(record))
    generate(plugin_source("mirrored"), tmp_path)  # what is there can still be used
    with pytest.raises(UserError, match=r"made_with\.code"):
        generate(plugin_source("mirrored", examples=100), tmp_path)


def test_a_task_too_large_is_given_up_after_a_probe(generate, tmp_path):
    """Would catch 1000 x 100 attempts at every task that `max_side` rules out."""
    with pytest.raises(UserError, match=r"task 007bbfb7 has 0 usable examples.*too_large"):
        generate(rearc_source(tasks=["007bbfb7"], max_side=1, examples=1000), tmp_path)
    assert list(modified(tmp_path)) == ["part-007bbfb7-0000000-0000050.parquet"]


def test_a_clones_examples_do_not_depend_on_workers_or_interruptions(generate, tmp_path):
    """Would catch draws that depend on what a worker's process drew before, and blocks that cannot be made again."""
    source = arcgen_source(write_clone(tmp_path / "clone", "00000001", "00000002"), examples=120)
    make_here(source, Folder.at(str(tmp_path / "here")))
    generate(source, tmp_path / "ray", num_workers=4)
    assert files_of(tmp_path / "ray") == files_of(tmp_path / "here")
    (tmp_path / "ray/data/arcgen/manifest.json").unlink()
    for path in [*(tmp_path / "ray").glob("data/*/part-*")][1::2]:
        path.unlink()
    generate(source, tmp_path / "ray", num_workers=1)
    assert files_of(tmp_path / "ray") == files_of(tmp_path / "here")


def test_a_node_with_other_generators_is_refused(tmp_path):
    """Would catch a dataset of two makings, from a cluster whose nodes have different clones, or one none at all."""
    from arc_ray.datasets.generate import _write_bundle

    there, other = (write_clone(tmp_path / name, "00000001", *more) for name, more in (("a", ()), ("b", ("00000002",))))
    made_with = maker_of(arcgen_source(there)).made_with()
    batch = pa.table({"bundle": [[{"task_id": "00000001", "start": 0, "stop": 5}]]})
    for path, message in ((there, ""), (other, "generators differ between nodes"), (tmp_path, "there is no generator")):
        folder = Folder.at(str(tmp_path / "made" / (message or "same").replace(" ", "_")))
        [news] = _write_bundle(batch, arcgen_source(path), folder, made_with, 100.0)
        [row] = news.to_pylist()
        assert (row["examples"], message in row["mistake"]) == (0 if message else 5, True)
        assert bool(folder.names()) == (not message)


def test_counting_goes_the_same_way(generate, tmp_path):
    source = CountingSource(kind="counting", examples=70, first=10, max_side=9)
    generate(source, tmp_path)
    tasks = load_source(source, Folder.at(str(tmp_path)))
    assert [task_to_json(task) for task in tasks] == [task_to_json(counting_task(source, i)) for i in range(10, 80)]


def test_exports_are_read_back(generate, unbroken, tmp_path):
    dataset, storage = Folder.at(str(unbroken)) / "data" / "rearc", Folder.at(str(unbroken))
    tasks = load_source(rearc_source(), storage)
    manifest = dataset.read_json("manifest.json")
    assert export_rearc(dataset, manifest, Folder.at(str(tmp_path / "dump"))) == 5
    dump = parse_all(given_tasks(RearcDumpSource(kind="rearc_dump", path=str(tmp_path / "dump"))))
    assert [(task.id, grids_of(task.train)[:60]) for task in dump] == [
        (task.id, grids_of(task.train)) for task in tasks
    ]
    metadata = json.loads((tmp_path / "dump/metadata.json").read_text())
    for task in dump:
        entry, pairs = metadata[task.id], task.train
        assert entry["n_generations"] >= entry["n_verified"] >= entry["n_nondegenerate"] >= len(pairs)
        assert len(entry["rng_difficulties"]) == len(entry["pso_difficulties"]) == len(pairs)
        assert entry["runtime"] > 0
    assert metadata["11852cab"]["n_verified"] > metadata["11852cab"]["n_nondegenerate"]
    count = export_arc_json(dataset, manifest, Folder.at(str(tmp_path / "arc")))
    arc = parse_all(folder_tasks(str(tmp_path / "arc")))
    assert count == len(arc) >= 5 * 15
    assert grids_of(arc[0].pairs) == grids_of(tasks[0].train[:4])


def driver(folder: Path) -> subprocess.Popen[bytes]:
    program = (
        "import ray, tempfile; from test_generate import *; from arc_ray.datasets.generate import ensure_datasets;"
        "ray.init(address='local', num_cpus=3, include_dashboard=False, object_store_memory=150 * 2**20,"
        " log_to_driver=False, _temp_dir=tempfile.mkdtemp(prefix='ray-'));"
        f"ensure_datasets({{'s': rearc_source(examples=120)}}, Folder.at({str(folder)!r}))"
    )
    return subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)


@pytest.mark.slow
def test_killed_with_signal_9_it_goes_on_and_ends_the_same(tmp_path):
    """Kills a worker, which another replaces, then the driver; another driver goes on, with nothing made anew."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"

    def wait_for_blocks(number: int) -> None:
        wait_for(lambda: len(modified(killed)) >= number, process)

    process = driver(killed)
    wait_for_blocks(1)
    [worker, *_] = wait_for(lambda: [p for p in descendants(process.pid) if is_making(p)], process)
    worker.kill()
    wait_for_blocks(len(modified(killed)) + 4)
    kill_driver(process)
    survived = modified(killed)
    last = driver(killed)
    assert last.wait() == 0
    assert survived.items() <= modified(killed).items(), "a finished block was made again"
    make_here(rearc_source(examples=120), Folder.at(str(whole)))
    assert files_of(killed) == files_of(whole)


def is_making(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.name().startswith("ray::Map")
    return False
