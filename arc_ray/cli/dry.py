"""`--dry-run`: what a command would do, from plans alone; nothing is written, and the storage need not be there."""

from collections.abc import Iterator
from typing import Any

from arc_ray.cli.console import Terminal
from arc_ray.cli.placing import foreseen
from arc_ray.config import Config, to_yaml
from arc_ray.datasets.requests import check_identity, dataset_folder, requests_of
from arc_ray.errors import NotMadeYetError
from arc_ray.models.estimate import estimate_lines
from arc_ray.runs.base import obtaining
from arc_ray.runs.folder import as_made, is_finished, resolve_reference, run_folder
from arc_ray.storage import Folder
from arc_ray.study.needs import Command, Needs, points_of
from arc_ray.tasks.task import TaskTable
from arc_ray.tune.space import num_trials, trial_name


def describe_training(asked: Config, address: str | None, terminal: Terminal) -> None:
    """Print the resolved config and, where the data is there already, the plan's counts. Raises UserError."""
    needs = Needs(foreseen(asked, address, terminal, "train"), "train")
    [run] = needs.variants
    terminal.console.print(to_yaml(run), markup=False)
    _describe_needs(needs, terminal)
    for line in plan_lines(run, asked):
        terminal.note(line)


def describe_search(asked: Config, address: str | None, terminal: Terminal) -> None:
    """Print the trials that a search would run. Raises UserError."""
    _describe_trials(foreseen(asked, address, terminal, "tune"), "tune", terminal)


def describe_study(asked: Config, address: str | None, terminal: Terminal) -> None:
    """Print the question, what must be made first, and the trials. Raises UserError."""
    config = foreseen(asked, address, terminal, "study")
    terminal.note(config.question or "(no question)")
    _describe_trials(config, "study", terminal)
    terminal.note(f"then, with seeds {config.study.seeds}: each arm at the setting chosen for it")


def describe_generation(config: Config, terminal: Terminal) -> None:
    """Print what each generated dataset has and lacks, and how long making the rest takes. Raises UserError."""
    from arc_ray.datasets.generate import estimate

    storage = Folder.at(config.storage)
    requests = requests_of(config.data.sources)
    if not requests:
        terminal.note("nothing to generate: no source is of kind rearc, counting or plugin")
    for request in requests:
        folder = dataset_folder(storage, request.dataset)
        if folder.exists("dataset.json"):
            check_identity(folder, request.source)
        users = [n for n, source in config.data.sources.items() if getattr(source, "dataset", None) == request.dataset]
        wanted, missing = sum(request.wanted.values()), estimate(request, storage)
        terminal.note(
            f"dataset {request.dataset} (for {', '.join(users)}): {wanted} examples of {len(request.wanted)} tasks;"
            f" {wanted - missing.wanted} there, {missing.wanted} missing: {missing.examples} to make in whole blocks,"
            f" about {missing.core_seconds / 60:.1f} minutes of a core"
        )


def describe_evaluation(asked: Config, address: str | None, terminal: Terminal) -> None:
    """Print what would be answered, by which model, and in how many tokens, as far as data and model are there.

    Raises UserError.
    """
    from arc_ray.evaluate.evaluation import check_prompt, needs_model

    needs = Needs(foreseen(asked, address, terminal, "evaluate"), "evaluate")
    [run] = needs.variants
    run = as_made(run_folder(run), run)
    if not needs_model(run):
        terminal.note(
            f"all predictions are there: attempts would be chosen by {run.evaluate.selection}, without a model"
        )
        return
    _describe_needs(needs, terminal)
    checkpoint = run.evaluate.checkpoint
    try:
        place = (
            resolve_reference(checkpoint, run.storage) if checkpoint else "none; answered by what training starts from"
        )
        check_prompt(run, "checkpoint")
        terminal.note(f"checkpoint: {place}")
    except NotMadeYetError as error:
        terminal.note(f"checkpoint: not there yet ({error})")
    for line in _questions(run):
        terminal.note(line)


def _questions(config: Config) -> Iterator[str]:
    """Say what each set asks: outputs, views, tokens to read and at most to write."""
    from arc_ray.evaluate.evaluation import asking_codec, load_set
    from arc_ray.evaluate.questions import make_prompts
    from arc_ray.models.weights import most_tokens
    from arc_ray.prompts.tokenizer import load_tokenizer

    evaluate = config.evaluate
    for name in evaluate.sets:
        try:
            tasks = load_set(config, name)
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


def plan_lines(config: Config, asked: Config) -> Iterator[str]:
    """Describe a training run by its plan: rows, steps, tokens, fill, memory, hours; or say what must be made before.

    Raises UserError.
    """
    from arc_ray.rows.prepare import prepare
    from arc_ray.train.run import check_training

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


def as_on_gpus(config: Config, asked: Config) -> Config:
    """Return the config in the arithmetic that GPUs would choose, where a machine without them chose its own."""
    is_open = asked.model.dtype == "auto" and not config.scaling.on_gpu
    model = config.model.model_copy(update={"dtype": "bfloat16"} if is_open else {})
    return config.model_copy(update={"model": model})


def _describe_trials(config: Config, command: Command, terminal: Terminal) -> None:
    _describe_needs(Needs(config, command), terminal)
    trials = points_of(config, command)
    if config.tune.search == "optuna":
        terminal.note(f"Optuna proposes {num_trials(config, trials)} trials between such as these:")
    else:
        terminal.note(f"{len(trials)} trials:")
    for point in trials:
        terminal.note(f"  {trial_name(point)}")


def _describe_needs(needs: Needs, terminal: Terminal) -> None:
    """Say what is made first. Raises UserError for what would be refused before work."""
    needs.check()
    for model in needs.models:
        if note := obtaining(model, needs.config.storage):
            terminal.note(note)
    for run in needs.runs:
        if is_finished(run_folder(run)):
            terminal.note(f"there already: {run.name}")
            continue
        kind = "a model from scratch" if run.model.scratch else f"training on {', '.join(run.data.mix)}"
        terminal.note(f"first, once: {run.name} ({kind})")
