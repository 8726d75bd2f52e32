"""Before work: `--dry-run`, what a command would do; `arc-ray check`, is everything there and what would it cost.

Nothing is written, and for `--dry-run` the storage need not be there. Each finding is a line.
"""

import itertools
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from arc_ray.cli.console import Terminal
from arc_ray.cli.joining import connected, is_cluster
from arc_ray.cli.session import foreseen, settled
from arc_ray.cluster.preflight import check_cluster
from arc_ray.cluster.speed import Speed
from arc_ray.config import Config, to_yaml
from arc_ray.datasets.generate import estimate
from arc_ray.datasets.makers import code_notes
from arc_ray.datasets.reading import checked_requests
from arc_ray.errors import NotMadeYetError, UserError
from arc_ray.evaluate.audit import audit_lines
from arc_ray.evaluate.evaluation import asking_codec, check_checkpoint, first_player, load_set, needs_model
from arc_ray.evaluate.questions import make_prompts
from arc_ray.models.build import build_model, build_skeleton
from arc_ray.models.estimate import demand, estimate_lines
from arc_ray.models.weights import most_tokens
from arc_ray.prompts.tokenizer import load_tokenizer
from arc_ray.rows.prepare import codec_of, prepare
from arc_ray.rows.quality import describe_data, quality_lines
from arc_ray.runs.folder import as_made, is_finished, resolve_reference, run_folder
from arc_ray.runs.machine import PACKAGES, version_of
from arc_ray.runs.obtain import obtaining
from arc_ray.runs.starts import lineage
from arc_ray.storage import Folder
from arc_ray.study.answers import shared_lines
from arc_ray.study.needs import Command, Needs
from arc_ray.tasks.task import TaskTable
from arc_ray.train.run import check_training
from arc_ray.tune.space import num_trials, trial_name


def show_findings(asked: Config | None, terminal: Terminal, address: str | None = None) -> None:
    """Print versions and devices, and with a config whether cluster, storage, model and data are usable. Raises UserError."""
    if is_cluster(address) and asked is None:
        raise UserError("give a config: which storage and how many workers are to be checked?")
    for line in _machine():
        terminal.note(line)
    if asked:
        with _placed(asked, terminal, address) as (needs, speed):
            _show_usable(needs, asked, speed, terminal)


def _show_usable(needs: Needs, asked: Config, speed: Speed | None, terminal: Terminal) -> None:
    [run] = needs.variants
    terminal.note(f"storage {run.storage}: writable")
    needs.check_sources()
    for note in obtaining(needs.names, run.storage):
        terminal.note(note)
    try:
        for line in _model(run):
            terminal.note(line)
    except NotMadeYetError as error:
        missing = ", ".join(needed.name for needed in needs.runs)
        terminal.note(f"model: made by this config's runs first ({missing}); now: {error}")
        lines = _data(needs.config, run, has_model=False)
    else:
        # What is wrong with the data may be why there is no plan.
        lines = itertools.chain(_data(needs.config, run, has_model=True), plan_lines(run, asked, speed))
    for line in lines:
        terminal.note(line)
    needs.check_overlap()


def _data(config: Config, run: Config, has_model: bool) -> Iterator[str]:
    try:
        yield from quality_lines(describe_data(run, lineage(config, run), has_model))
    except NotMadeYetError as error:
        yield f"data: not known yet ({error})"


@contextmanager
def _placed(config: Config, terminal: Terminal, address: str | None) -> Iterator[tuple[Needs, Speed | None]]:
    """Choose where a training would run; on a cluster, check that too, and how fast it is."""
    if not is_cluster(address):
        with foreseen(config, "train", None, terminal) as needs:
            yield needs, None
        return
    with connected(config, address) as room:
        needs = settled(Needs(config, "train"), room, terminal)
        speed = check_cluster(needs.variants[0], room, terminal.note)
    needs.storage.try_writing(creates=False)
    yield needs, speed


def _machine() -> Iterator[str]:
    yield f"Python {platform.python_version()} on {platform.system()} {platform.machine()} ({sys.executable})"
    yield "packages: " + ", ".join(f"{name} {version_of(name)}" for name in PACKAGES)
    if not torch.cuda.is_available():
        yield f"no GPU; {torch.get_num_threads()} CPU threads"
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        yield f"GPU {i}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB"


def _model(config: Config) -> Iterator[str]:
    train = config.train
    tokenizer = load_tokenizer(config.model, config.storage)
    build_model(config.model, config.storage, config.seed, train.full, tokenizer, train.row_tokens)
    codec = codec_of(config, tokenizer)
    way = "ids of grids are looked up" if codec.is_fast else "it merges cells, so every view goes through the tokenizer"
    yield f"model {config.model.base or 'from scratch'}: loads; vocabulary {len(tokenizer)}; {way}"


def describe_command(command: Command, asked: Config, address: str | None, terminal: Terminal) -> None:
    """Print what a command would do, but for `generate`. Raises UserError."""
    with foreseen(asked, command, address, terminal) as needs:
        match command:
            case "train":
                _describe_needs(needs, terminal)
                lines = list(plan_lines(needs.variants[0], asked))  # what is refused is not sought below a long config
                terminal.console.print(to_yaml(needs.variants[0]), markup=False)
                for line in lines:
                    terminal.note(line)
            case "evaluate":
                _describe_evaluation(needs, terminal)
            case "audit":
                _describe_needs(needs, terminal)
                for line in audit_lines(needs.variants[0]):
                    terminal.note(line)
            case "tune":
                _describe_trials(needs, terminal)
            case "study":
                terminal.note(asked.question or "(no question)")
                _describe_trials(needs, terminal)
                first, *others = asked.study.looks
                more = f"; more seeds, {first} at a time, up to {others[-1]} until it is clear" if others else ""
                seeds = asked.study.all_seeds[:first]
                terminal.note(f"then, with seeds {seeds}: each arm at the setting chosen for it{more}")
                for line in shared_lines(needs.config):
                    terminal.note(line)


def describe_generation(config: Config, terminal: Terminal) -> None:
    """Print what each generated dataset has and lacks, and how long making the rest takes. Raises UserError."""
    storage = Folder.at(config.storage)
    storage.try_writing(creates=False)
    requests = checked_requests(config.data.sources, storage)
    if not requests:
        terminal.note("nothing to generate: no source is of kind rearc, counting or plugin")
    for request in requests:
        dataset = request.source.dataset
        users = [n for n, source in config.data.sources.items() if getattr(source, "dataset", None) == dataset]
        wanted, missing = sum(request.wanted.values()), estimate(request, storage)
        terminal.note(
            f"dataset {dataset} (for {', '.join(users)}): {wanted} examples of {len(request.wanted)} tasks;"
            f" {wanted - missing.wanted} there, {missing.wanted} missing: {missing.examples} to make in whole blocks,"
            f" about {missing.core_seconds / 60:.1f} minutes of a core"
        )
        for note in code_notes(request.source) if missing.examples else ():
            terminal.note(note)


def _describe_evaluation(needs: Needs, terminal: Terminal) -> None:
    """Print what would be answered, by which model, and in how many tokens, as far as data and model are there."""
    [run] = needs.variants
    run = as_made(run_folder(run), run)
    if not needs_model(run.evaluate, run_folder(run)):
        terminal.note(
            f"all predictions are there: attempts would be chosen by {run.evaluate.selection}, without a model"
        )
        return
    _describe_needs(needs, terminal)
    for key, player in {"checkpoint": run, "describer": first_player(run) if run.evaluate.describer else None}.items():
        if not player:
            continue
        checkpoint, place = player.evaluate.checkpoint, "none; answered by what training starts from"
        try:
            if checkpoint:
                place = resolve_reference(checkpoint, run.storage)
                check_checkpoint(player, key)
                build_skeleton(run.model, run.storage, full=True, checkpoint=checkpoint)
            terminal.note(f"{key}: {place}")
        except NotMadeYetError as error:
            terminal.note(f"{key}: not there yet ({error})")
    for line in _questions(run):
        terminal.note(line)


def _questions(config: Config) -> Iterator[str]:
    """Say what each set asks: outputs, views, tokens to read and at most to write."""
    evaluate = config.evaluate
    for name in evaluate.sets:
        try:
            tasks = load_set(name, config.data.sources[name], Folder.at(config.storage))
            questions = sum(len(task.questions) for task in tasks)
            if questions:
                yield f"{name}: {questions} questions of {len(tasks)} grids"
                continue
            outputs = sum(len(task.test) for task in tasks)
            yield f"{name}: {outputs} outputs of {len(tasks)} tasks"
            codec = asking_codec(config, load_tokenizer(config.model, config.storage))
        except NotMadeYetError as error:
            yield f"{name}: not known yet ({error})"
            continue
        most = most_tokens(config.model, config.storage)
        prompts = make_prompts(codec, TaskTable.of(tasks), config, most)
        views, read = evaluate.symmetries * evaluate.copies, sum(len(prompt.ids) for prompt in prompts)
        yield (
            f"{name}: {views} views an output, {outputs * views - len(prompts)} left out as too long;"
            f" {len(prompts)} prompts of {read} tokens, at most {sum(prompt.limit for prompt in prompts)} to write"
        )
        if evaluate.ttt:
            yield f"{name}: before that, {evaluate.ttt.steps} steps of test-time training on each task"


def plan_lines(config: Config, asked: Config, speed: Speed | None = None) -> Iterator[str]:
    """Describe a training run by its plan: rows, steps, tokens, fill, memory, hours, and whether a cluster's speed will do;
    or say what must be made before.

    Raises UserError.
    """
    try:
        check_training(config)
        plan = prepare(config).plan
    except NotMadeYetError as error:
        yield f"plan: not known yet ({error})"
        return
    counts: dict[str, Any] = plan.counts
    yield (
        f"plan: {plan.num_steps} steps of {plan.batch_rows} rows of {plan.row_tokens} tokens,"
        f" {100 * plan.fill():.1f} % filled"
    )
    yield f"plan: {int(plan.tokens_per_step().sum())} tokens, {int(plan.learned_per_step().sum())} of them learned"
    yield f"plan: {counts['views']} views, {counts['dropped']} dropped as too long; by source {counts['views_per_source']}"
    for name, views in counts["views_per_task"].items():
        fewest, most, without = views["fewest"], views["most"], views["tasks_without"]
        yield f"plan: {name}: {fewest} to {most} views a task, {without} tasks without"
    yield from estimate_lines(as_on_gpus(config, asked), plan)
    if speed:
        yield from demand(config, plan, speed.accelerator).lines(speed)


def as_on_gpus(config: Config, asked: Config) -> Config:
    """Return the config in the arithmetic that GPUs would choose, where a machine without them chose its own."""
    is_open = asked.model.dtype == "auto" and not config.scaling.on_gpu
    model = config.model.model_copy(update={"dtype": "bfloat16"} if is_open else {})
    return config.model_copy(update={"model": model})


def _describe_trials(needs: Needs, terminal: Terminal) -> None:
    _describe_needs(needs, terminal)
    if needs.config.tune.search == "optuna":
        number = num_trials(needs.config, needs.points)
        terminal.note(f"Optuna proposes {number} trials between such as these:")
    else:
        terminal.note(f"{len(needs.points)} trials:")
    for point in needs.points:
        terminal.note(f"  {trial_name(point)}")


def _describe_needs(needs: Needs, terminal: Terminal) -> None:
    """Say what is made first. Raises UserError for what would be refused before work."""
    needs.check()
    for note in obtaining(needs.names, needs.config.storage):
        terminal.note(note)
    for run in needs.runs:
        if is_finished(run_folder(run)):
            terminal.note(f"there already: {run.name}")
            continue
        kind = "a model from scratch" if run.model.scratch else f"training on {', '.join(run.data.mix)}"
        terminal.note(f"first, once: {run.name} ({kind})")
