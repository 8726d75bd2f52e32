"""`--dry-run`: what a command would do, from plans alone; nothing is trained."""

from typing import Any

from arc_ray.cli.console import Terminal
from arc_ray.cli.estimate import estimate_lines
from arc_ray.config import Config, to_yaml
from arc_ray.errors import UserError
from arc_ray.fetch import obtaining
from arc_ray.model import model_path
from arc_ray.study.comparing import search_points
from arc_ray.study.driver import bases, check_overlap
from arc_ray.train.starts import config_of_run, needed_runs, with_start
from arc_ray.tune.space import Point, check_points, num_trials, points, trial_name


def describe_training(config: Config, asked: Config, terminal: Terminal) -> None:
    """Print the resolved config and, where the data is there already, the plan's counts. Raises UserError.

    `asked` is the config before what is `auto` in it was chosen.
    """
    run = with_start(config)
    terminal.console.print(to_yaml(run), markup=False)
    _describe_needs(config, [run], terminal)
    for line in plan_lines(run, asked):
        terminal.note(line)


def describe_search(config: Config, terminal: Terminal) -> None:
    """Print the trials that a search would run. Raises UserError."""
    _describe_trials(config, points(config), terminal)


def describe_study(config: Config, terminal: Terminal) -> None:
    """Print the question, what must be made first, and the trials. Raises UserError."""
    terminal.note(config.question or "(no question)")
    _describe_trials(config, search_points(config, points(config)), terminal, in_study=True)
    terminal.note(f"then, with seeds {config.study.seeds}: each arm at the setting chosen for it")


def plan_lines(config: Config, asked: Config) -> list[str]:
    """Describe a training run by its plan: rows, steps, tokens, fill, memory, hours; or say why it cannot be made yet."""
    from arc_ray.train.driver import prepare

    try:
        plan = prepare(config).plan
    except UserError as error:
        return [f"plan: not known yet ({error})"]
    counts: dict[str, Any] = plan.counts
    return [
        f"plan: {plan.num_steps} steps of {plan.batch_rows} rows of {plan.row_tokens} tokens,"
        f" {100 * plan.fill():.1f} % filled",
        f"plan: {int(plan.tokens_per_step().sum())} tokens, {int(plan.learned_per_step().sum())} of them learned",
        f"plan: {counts['views']} views, {counts['dropped']} dropped as too long; by source {counts['views_per_source']}",
        *(
            f"plan: {name}: {of_task['fewest']} to {of_task['most']} views a task, {of_task['tasks_without']} tasks without"
            for name, of_task in counts["views_per_task"].items()
        ),
        *estimate_lines(as_on_gpus(config, asked), plan),
    ]


def as_on_gpus(config: Config, asked: Config) -> Config:
    """Return the config in the arithmetic that GPUs would choose, where a machine without them chose its own."""
    is_open = asked.model.dtype == "auto" and not config.scaling.on_gpu
    model = config.model.model_copy(update={"dtype": "bfloat16"} if is_open else {})
    return config.model_copy(update={"model": model})


def _describe_trials(config: Config, trials: list[Point], terminal: Terminal, in_study: bool = False) -> None:
    from arc_ray.study.driver import check_validation

    variants = check_points(config, trials)
    check_validation(config, variants, in_study)
    _describe_needs(config, variants, terminal)
    if config.tune.search == "optuna":
        terminal.note(f"Optuna proposes {num_trials(config, trials)} trials between such as these:")
    else:
        terminal.note(f"{len(trials)} trials:")
    for point in trials:
        terminal.note(f"  {trial_name(point)}")


def _describe_needs(config: Config, variants: list[Config], terminal: Terminal) -> None:
    """Say what is made first. Raises UserError for what would be refused before work."""
    check_overlap(config, variants)
    for base in bases(config, variants):
        if note := obtaining(base, config.storage):
            terminal.note(note)
        else:
            model_path(base, config.storage)
    for name in needed_runs(config, variants):
        run = config_of_run(config, name)
        kind = "a model from scratch" if run.model.scratch else f"training on {', '.join(run.data.mix)}"
        terminal.note(f"first, once: {name} ({kind})")
