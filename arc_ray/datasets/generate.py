"""Generate datasets with Ray Data: every block is made by some worker, once, and written by it.

The driver only decides which blocks are missing and in which order they are started. Killed at any time and called
again, it goes on: blocks are files written whole, so at most those in flight are made again.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import pyarrow as pa
import ray
import ray.data

from arc_ray.cluster.roles import data_selector, reachable_room
from arc_ray.config.sources import AnySource
from arc_ray.datasets.blocks import Block, read_stats, write_block
from arc_ray.datasets.makers import (
    GeneratedSource,
    Request,
    check_identity,
    claim_dataset,
    code_notes,
    dataset_folder,
    maker_of,
    requests_of,
)
from arc_ray.datasets.manifest import Tally, empty_tallies, make_manifest, open_wishes
from arc_ray.datasets.reading import READ_THREADS, check_supply
from arc_ray.errors import UserError, unwrapped
from arc_ray.progress import Progress
from arc_ray.runs.shapes import DatasetShape, ManifestShape
from arc_ray.storage import Folder

MIN_BUNDLE_SECONDS, MAX_BUNDLE_SECONDS = 0.5, 12.0
"""Bounds of a bundle of blocks. A worker waits 0.13 s after each, since Ray Data looks for finished tasks every 0.1 s:
shorter ones would waste more than they balance. Longer ones would leave little for nodes that join later."""
WORKER_SHARES = 1.1
"""A bundle holds 1 / (1.1 x workers) of the work that is left; estimates are good enough for so large a share."""

NEWS_SECONDS = 1.0
"""A worker tells what it has made this often: each time costs it 7 ms, as much as some blocks."""
DRIVER_SECONDS = 0.01
"""What a bundle costs the driver: 8.5 ms of its one core, and 3 ms for each piece of news. All seconds above grow with the
number of workers where the driver could not serve them all in time: the least from 100 workers on, the most from 300."""


class Missing(NamedTuple):
    """What a dataset still lacks, but for the replacement of duplicates."""

    examples: int
    """To make, in whole blocks."""
    core_seconds: float
    wanted: int
    """Those among them that are asked for."""


def ensure_datasets(
    sources: Mapping[str, AnySource], storage: Folder, progress: Progress | None = None, num_workers: int | None = None
) -> dict[str, dict[str, Any]]:
    """Make what is missing of every dataset that these sources need; return dataset -> manifest.

    `num_workers` bounds the blocks made at the same time; None leaves it to the CPUs that Ray has. Neither that nor an
    interruption changes any byte outside `timings/`. Nothing is started if nothing is missing; else Ray must be
    connected. Raises UserError for sources that do not fit a dataset or yield nothing.
    """
    requests = requests_of(sources)
    manifests = {r.source.dataset: _ensure_dataset(r, storage, progress, num_workers) for r in requests}
    for source in sources.values():
        if isinstance(source, GeneratedSource):
            check_supply(source, manifests[source.dataset], dataset_folder(storage, source.dataset))
    return manifests


def _ensure_dataset(
    request: Request, storage: Folder, progress: Progress | None, num_workers: int | None
) -> dict[str, Any]:
    source, folder = request.source, dataset_folder(storage, request.source.dataset)
    manifest = folder.read_json("manifest.json", ManifestShape)
    wanted = open_wishes(manifest, request.wanted)
    if manifest and not wanted:
        check_identity(folder, source)
        return manifest
    claim_dataset(folder, source)
    if progress:
        for note in code_notes(source):
            progress.note(note)
    done, total, tallies = 0, estimate(request, storage).examples, empty_tallies(source, wanted)
    while missing := _missing_blocks(folder, tallies, wanted):
        total = max(total, done + sum(block.size for block in missing))
        for num_examples in _write_blocks(source, folder, missing, num_workers):
            done += num_examples
            if progress:
                progress.advance(f"{source.dataset}, examples", done, total)
    entries = {**(manifest["tasks"] if manifest else {}), **{tally.task_id: tally.entry() for tally in tallies}}
    manifest = make_manifest(folder.read_json("dataset.json", DatasetShape), entries)
    folder.write_json("manifest.json", manifest)
    return manifest


def estimate(request: Request, storage: Folder) -> Missing:
    """Estimate the work for one dataset from the blocks that are not there; needs no Ray."""
    folder = dataset_folder(storage, request.source.dataset)
    wanted, names = open_wishes(folder.read_json("manifest.json", ManifestShape), request.wanted), set(folder.names())
    tallies = empty_tallies(request.source, wanted)
    missing = [(t, b) for t in tallies for b in t.blocks_to(wanted[t.task_id]) if b.name not in names]
    return Missing(
        examples=sum(b.size for _, b in missing),
        core_seconds=sum(t.seconds_each * b.size for t, b in missing),
        wanted=sum(max(0, min(b.stop, wanted[t.task_id]) - b.start) for t, b in missing),
    )


def bundle_limits(num_workers: int) -> tuple[float, float]:
    """Return the least and the most seconds of a bundle that so many workers can be served with."""
    round_seconds = num_workers * DRIVER_SECONDS
    return max(MIN_BUNDLE_SECONDS, round_seconds / 2), max(MAX_BUNDLE_SECONDS, 4 * round_seconds)


def bundles_of(blocks: Sequence[Block], seconds: Mapping[str, float], num_workers: int) -> list[list[Block]]:
    """Order blocks by estimated cost, longest first, and bundle them; `seconds` is the cost of an example of each task.

    A bundle is one task of Ray's. It takes a fixed share of the work that is left: workers end together, yet each gets only
    a few (Polychronopoulos and Kuck, "Guided self-scheduling", 1987). Blocks of the same cost come in turns from all
    tasks: a task that takes longer than estimated is spread over many bundles.
    """

    def cost(block: Block) -> float:
        return seconds[block.task_id] * block.size

    bundles: list[list[Block]] = []
    shortest, longest = bundle_limits(num_workers)
    left, room = sum(map(cost, blocks)), 0.0
    for block in sorted(blocks, key=lambda block: (-cost(block), block.start, block)):
        if cost(block) > room or not bundles:
            bundles.append([])
            room = min(max(left / (WORKER_SHARES * num_workers), shortest), longest)
        bundles[-1].append(block)
        room -= cost(block)
        left -= cost(block)
    return bundles


def _missing_blocks(folder: Folder, tallies: Sequence[Tally], wanted: Mapping[str, int]) -> list[Block]:
    """Take in all blocks that are there; return the ones to make in the next round."""
    names = set(folder.names())

    def advance(tally: Tally) -> list[Block]:
        while blocks := tally.next_blocks(wanted[tally.task_id]):
            missing = [block for block in blocks if block.name not in names]
            if missing:
                return missing
            tally.add(read_stats(folder, blocks))
        return []

    with ThreadPoolExecutor(READ_THREADS) as pool:
        return [block for blocks in pool.map(advance, tallies) for block in blocks]


def _write_blocks(
    source: GeneratedSource, folder: Folder, blocks: Sequence[Block], num_workers: int | None
) -> Iterator[int]:
    """Make blocks in parallel; yield numbers of examples as they are done. Raises UserError if a worker met one."""
    seconds = {block.task_id: maker_of(source).seconds(block.task_id) for block in blocks}
    at_once = num_workers or max(1, reachable_room().holds(1))
    bundles = bundles_of(blocks, seconds, at_once)
    # One item a bundle: from_arrow would first run a task for each, to look at it.
    items = [{"bundle": [block._asdict() for block in bundle]} for bundle in bundles]
    news_seconds = max(NEWS_SECONDS, at_once * DRIVER_SECONDS)
    done = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        partial(
            _write_bundle,
            source=source,
            folder=folder,
            made_with=maker_of(source).made_with(),
            news_seconds=news_seconds,
        ),
        batch_format="pyarrow",
        batch_size=None,
        num_cpus=1,
        compute=ray.data.TaskPoolStrategy(size=num_workers) if num_workers else None,
    )
    done.context.enable_progress_bars = False
    done.context.execution_options.label_selector = data_selector()
    done.context.execution_no_progress_timeout_s = -1  # a bundle may take long; a hanging example has its own limit
    # Rows come back one by one. Ray also reserves twice this much for each task: its 128 MiB would leave workers idle.
    done.context.target_max_block_size = 1
    for row in done.iter_rows():
        if row["mistake"]:
            raise UserError(row["mistake"])
        yield row["examples"]


def _write_bundle(
    batch: pa.Table, source: GeneratedSource, folder: Folder, made_with: Mapping[str, str], news_seconds: float
) -> Iterator[pa.Table]:
    """Make the blocks of a bundle, telling now and then how many examples are there. A user's mistake travels as a value,
    because Ray would wrap an exception; that this node has other generators than the driver (`made_with`) is one."""

    def news(examples: int, mistake: str = "") -> pa.Table:
        return pa.table({"examples": [examples], "mistake": [mistake]})

    [bundle] = batch["bundle"].to_pylist()
    made, told, mistake = 0, time.monotonic(), ""
    try:
        with unwrapped():
            if (here := maker_of(source).made_with()) != made_with:
                raise UserError(
                    f"dataset {source.dataset}: generators differ between nodes: {here} on one, {made_with} where the"
                    f" command runs; give every node the same"
                )
            for block in bundle:
                write_block(source, Block(**block), folder)
                made += block["stop"] - block["start"]
                if time.monotonic() - told > news_seconds:
                    yield news(made)
                    made, told = 0, time.monotonic()
    except UserError as error:
        mistake = str(error)
    yield news(made, mistake)
