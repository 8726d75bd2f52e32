"""`arc-ray check`: is everything there that a config needs, and what would it cost; each finding is one line."""

import itertools
import platform
import sys
from collections.abc import Iterator

from arc_ray.cli.console import Terminal
from arc_ray.cli.dry import plan_lines
from arc_ray.cli.session import check_storage, connected, is_cluster
from arc_ray.config import Config
from arc_ray.errors import NotMadeYetError, UserError
from arc_ray.rows.prepare import codec_of
from arc_ray.rows.quality import describe_data, quality_lines
from arc_ray.runs.base import obtaining
from arc_ray.runs.machine import PACKAGES, version_of
from arc_ray.runs.starts import lineage, with_start
from arc_ray.study.needs import Needs


def show_findings(asked: Config | None, terminal: Terminal, address: str | None = None) -> None:
    """Print versions and devices, and with a config whether cluster, storage, model and data are usable. Raises UserError."""
    if is_cluster(address) and asked is None:
        raise UserError("give a config: which storage and how many workers are to be checked?")
    config = _placed(asked, terminal, address) if asked else None
    for line in _machine():
        terminal.note(line)
    if asked is None or config is None:
        return
    check_storage(config, creates=False)
    terminal.note(f"storage {config.storage}: writable")
    needs = Needs(config, "train")
    [run] = needs.variants
    needs.check_sources()
    if note := obtaining(run.model.base, config.storage):
        terminal.note(note)
    try:
        for line in _model(run):
            terminal.note(line)
    except NotMadeYetError as error:
        missing = ", ".join(needed.name for needed in needs.runs)
        terminal.note(f"model: made by this config's runs first ({missing}); now: {error}")
        lines = _data(config, run, has_model=False)
    else:
        # What is wrong with the data may be why there is no plan.
        lines = itertools.chain(_data(config, run, has_model=True), plan_lines(run, asked))
    for line in lines:
        terminal.note(line)
    needs.check_overlap()


def _data(config: Config, run: Config, has_model: bool) -> Iterator[str]:
    try:
        yield from quality_lines(describe_data(run, lineage(config, run), has_model))
    except NotMadeYetError as error:
        yield f"data: not known yet ({error})"


def _placed(config: Config, terminal: Terminal, address: str | None) -> Config:
    """Choose where a training would run; on a cluster, check that too."""
    from arc_ray.cli.placing import foreseen, settled
    from arc_ray.cluster.preflight import check_cluster

    if not is_cluster(address):
        return foreseen(config, None, terminal, "train")
    with connected(config, address) as room:
        config = settled(config, room, terminal, "train")
        for line in check_cluster(with_start(config), room):
            terminal.note(line)
    return config


def _machine() -> Iterator[str]:
    import torch

    yield f"Python {platform.python_version()} on {platform.system()} {platform.machine()} ({sys.executable})"
    yield "packages: " + ", ".join(f"{name} {version_of(name)}" for name in PACKAGES)
    if not torch.cuda.is_available():
        yield f"no GPU; {torch.get_num_threads()} CPU threads"
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        yield f"GPU {i}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB"


def _model(config: Config) -> Iterator[str]:
    from arc_ray.models.build import build_model
    from arc_ray.prompts.tokenizer import load_tokenizer

    train = config.train
    tokenizer = load_tokenizer(config.model, config.storage)
    build_model(config.model, config.storage, config.seed, train.full, tokenizer, train.row_tokens)
    codec = codec_of(config, tokenizer)
    way = "ids of grids are looked up" if codec.is_fast else "it merges cells, so every view goes through the tokenizer"
    yield f"model {config.model.base or 'from scratch'}: loads; vocabulary {len(tokenizer)}; {way}"
