"""The commands that work. Each reads a config, does what it says through one function of the package, and sums up."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from arc_ray.cli.console import Terminal
from arc_ray.cli.notebook import generate as make_examples
from arc_ray.cli.notebook import run
from arc_ray.config import Config, load_config, parse_assignments
from arc_ray.config.tree import known_keys
from arc_ray.errors import UserError
from arc_ray.runs.folder import JOB_FOLDER, run_folder
from arc_ray.runs.machine import version_of
from arc_ray.runs.starts import with_start
from arc_ray.scores.records import read_record
from arc_ray.storage import Folder

if TYPE_CHECKING:
    from arc_ray.study.needs import Command

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Fine-tune language models on ARC puzzles, distributed by Ray, with an interval around every answer.\n\n"
    "CONFIG is a YAML file; every key of it can be changed on the command line: arc-ray study configs/quickstart.yaml"
    " train.lr=1e-3 study.seeds='[0, 1]'. Interrupted commands go on when called again.",
)

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, such as configs/quickstart.yaml")]
Assignments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Config keys to change; `arc-ray keys` explains each",
        autocompletion=lambda incomplete: [f"{key}=" for key in sorted(known_keys()) if key.startswith(incomplete)],
    ),
]
TAKES_KEYS = {"ignore_unknown_options": True}
"""Settings of a command that takes `Assignments`: who writes `--lr 3` is told of keys, which the parser knows nothing of."""
DryRun = Annotated[bool, typer.Option("--dry-run", help="Resolve, plan and estimate; then stop")]
Address = Annotated[str | None, typer.Option(help="Ray cluster to join; without one, Ray starts here if it is needed")]


def _say_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"arc_ray {version_of('arc_ray')}")
        raise typer.Exit


@app.callback()
def before_any(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Say the version; `check` says all")
    ] = False,
) -> None: ...


@app.command(context_settings=TAKES_KEYS)
def study(
    config: ConfigPath, assignments: Assignments = None, dry_run: DryRun = False, address: Address = None
) -> None:
    """The main job: data, starting checkpoints, search, evaluation, and a report that answers the config's question."""
    begun, terminal, loaded = time.monotonic(), Terminal(), loaded_config(config, assignments, writes=not dry_run)
    if dry_run:
        return _describe("study", loaded, address, terminal)
    result = run("study", loaded, address, terminal)
    terminal.console.print(f"\n{result['answer']}", markup=False)
    minutes, seconds = divmod(int(time.monotonic() - begun), 60)
    place = (run_folder(loaded) / "report.html").uri
    terminal.console.print(f"Report: {place}  ({minutes} min {seconds:02d} s)", markup=False)


@app.command(context_settings=TAKES_KEYS)
def generate(
    config: ConfigPath,
    assignments: Assignments = None,
    dry_run: DryRun = False,
    address: Address = None,
    export: Annotated[str | None, typer.Option(help="Also write the datasets as arc_json or as rearc's layout")] = None,
) -> None:
    """Make the RE-ARC, counting and plug-in examples that a config's sources need; adds what is missing, never again."""
    if export:
        from arc_ray.datasets.export import check_format

        check_format(export)
    terminal, loaded = Terminal(), loaded_config(config, assignments, writes=not dry_run)
    if dry_run:
        from arc_ray.cli.check import describe_generation

        return describe_generation(loaded, terminal)
    storage, manifests = Folder.at(loaded.storage), make_examples(loaded, address, terminal)
    for name in manifests:
        terminal.note((storage / f"data/{name}/manifest.json").uri)
    if export:
        from arc_ray.datasets.export import export_datasets

        for place in export_datasets(storage, manifests, export):
            terminal.note(place)


@app.command(context_settings=TAKES_KEYS)
def train(
    config: ConfigPath, assignments: Assignments = None, dry_run: DryRun = False, address: Address = None
) -> None:
    """One training run: LoRA (or full) training by DeepSpeed, several workers under Ray Train; resumed if it was cut off."""
    terminal, loaded = Terminal(), loaded_config(config, assignments, writes=not dry_run)
    if dry_run:
        return _describe("train", loaded, address, terminal)
    result = run("train", loaded, address, terminal)
    terminal.note((run_folder(with_start(loaded)) / result["checkpoint"]).uri)


@app.command(context_settings=TAKES_KEYS)
def tune(config: ConfigPath, assignments: Assignments = None, dry_run: DryRun = False, address: Address = None) -> None:
    """A search over config keys: trials.csv and best.yaml.

    trials.csv, of searches, studies and reports alike, has a line a trial: study, trial, arm, seed, status, error, steps,
    seconds, then the config keys that trials set, then the last value of every metric; empty where there is none.
    """
    terminal, loaded = Terminal(), loaded_config(config, assignments, writes=not dry_run)
    if dry_run:
        return _describe("tune", loaded, address, terminal)
    run("tune", loaded, address, terminal)
    terminal.note(f"{(run_folder(loaded) / 'trials.csv').uri} and best.yaml")


@app.command(context_settings=TAKES_KEYS)
def evaluate(
    config: ConfigPath, assignments: Assignments = None, dry_run: DryRun = False, address: Address = None
) -> None:
    """Predictions, votes over views, scores by the three rules and submission.json for a checkpoint.

    Of a finished evaluation, `evaluate.selection=...` chooses again from what is kept: no Ray, and no model either.
    Runs that the config refers to as "@name" are trained first.
    """
    terminal, loaded = Terminal(), loaded_config(config, assignments, writes=not dry_run)
    if dry_run:
        return _describe("evaluate", loaded, address, terminal)
    from arc_ray.report import write_report

    _show_scores(run("evaluate", loaded, address, terminal), terminal)
    terminal.note(write_report([run_folder(with_start(loaded)).uri])["report.html"])


@app.command(context_settings=TAKES_KEYS)
def audit(
    config: ConfigPath, assignments: Assignments = None, dry_run: DryRun = False, address: Address = None
) -> None:
    """Memory or skill? What a checkpoint solves of published pairs, against fresh ones of the same rules.

    The tasks of evaluate.sets are answered once by the plain view, as they are published; with fresh test inputs that a
    generator makes (RE-ARC's for 400 tasks of ARC-AGI-1, others by evaluate.audit.sources), matched in size and difficulty,
    after the same shown pairs; turned; and recoloured. What is solved of the published pairs alone was learned by heart:

    published - fresh above zero: these pairs, not their rules; published - turned above zero: they were learned as they stand

    arc-ray audit CONFIG evaluate.checkpoint=@RUN evaluate.audit.fresh=20

    Differences are paired by task and have intervals; tasks that the training data are known to hold are told apart from
    the others. audit.json has a record an answered output, below the evaluation's folder in audit/.
    """
    terminal, loaded = Terminal(), loaded_config(config, assignments, writes=not dry_run)
    if dry_run:
        return _describe("audit", loaded, address, terminal)
    from arc_ray.report import write_report

    result = run("audit", loaded, address, terminal)
    level = f"{100 * result['confidence']:g} %"
    for path, score in read_record(result).items():
        name, value = "/".join(path), 100 * score["value"]
        if "minus" in path[-1]:
            low, high = 100 * score["low"], 100 * score["high"]
            terminal.note(f"{name}: {value:+.1f} points, {level} interval {low:+.1f} to {high:+.1f}")
        else:
            terminal.note(f"{name}: {value:.1f} % solved")
    terminal.note(write_report([(run_folder(with_start(loaded)) / "audit").uri])["report.html"])


def _show_scores(result: Mapping[str, Any], terminal: Terminal) -> None:
    scores, level = read_record(result), f"{100 * result.get('confidence', 0.95):g} %"
    for path, score in scores.items():
        if path[-1] in ("per_output", "per_task_mean", "strict", "accuracy"):
            terminal.note(f"{'/'.join(path)}: {100 * score['value']:.1f} %")
    for path, score in scores.items():
        if path[-1] == "gain":
            value, low, high = (100 * score[key] for key in ("value", "low", "high"))
            terminal.note(f"{'/'.join(path)}: {value:+.1f} points, {level} interval {low:+.1f} to {high:+.1f}")


def _describe(command: "Command", config: Config, address: str | None, terminal: Terminal) -> None:
    from arc_ray.cli.check import describe_command

    describe_command(command, config, address, terminal)


def loaded_config(path: Path, assignments: list[str] | None, writes: bool) -> Config:
    """Read a config and refuse a storage that ends with the job; one that is written is made and tried. Raises UserError."""
    is_option = str(path).startswith("-")
    config = load_config(path, parse_assignments([str(path)] if is_option else assignments or []))
    storage = Folder.at(config.storage)
    if JOB_FOLDER in storage.uri:
        raise UserError(
            f"storage {config.storage}: a job's own folder is deleted after it; give a place that outlives it and that"
            f" all nodes see, such as storage=s3://bucket/runs or storage=/shared/runs"
        )
    if writes:
        storage.try_writing()
    return config
