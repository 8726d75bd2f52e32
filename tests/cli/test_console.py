"""What is shown of work that goes on: looked at in its folder, and once more at its end."""

import io
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest
from plans import planned
from rich.console import Console

from arc_ray.cli.console import Terminal
from arc_ray.config import config_from, to_yaml
from arc_ray.errors import UserError
from arc_ray.progress import watched
from arc_ray.rows.plan import save_plan
from arc_ray.runs.folder import MetricsFile, run_folder
from arc_ray.study.stages import steps_shown


class Heard:
    """Progress that remembers how far what is."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, float, float, str]] = []
        self.notes: list[str] = []

    def stage(self, number: int, total: int, title: str) -> None: ...
    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None: ...
    def note(self, text: str) -> None:
        self.notes.append(text)

    def advance(self, what: str, done: float, total: float, detail: str = "") -> None:
        self.steps.append((what, done, total, detail))


def test_a_narrow_terminal_shows_how_far_and_how_long() -> None:
    """Catches numbers beside a bar that push the time left off the line, while the bar keeps its width."""
    shown = io.StringIO()
    terminal = Terminal()
    terminal.console = Console(file=shown, force_terminal=True, width=80, color_system=None, _environ={})
    terminal._is_live = True
    terminal.advance("try1, steps", 3, 28, "loss 0.913 tokens/s 7824 solved 0.150 cells 0.489")
    terminal.close()
    assert " 3/28 --:-- loss 0.913 tokens/s 7824 solved 0.150 cells 0.489" in shown.getvalue()


def test_a_search_tells_the_time_left_below_its_table() -> None:
    """Catches hours in which nobody knows how long a search takes, and a bar that knows only of its last half minute."""
    shown, now = io.StringIO(), [0.0]
    terminal = Terminal()
    terminal.console = Console(file=shown, force_terminal=True, width=80, color_system=None, get_time=lambda: now[0])
    terminal._is_live = True
    columns, rows = (
        ("lr", "status", "step", "loss", "solved", "cells"),
        [[rate, "running", 5, 1.5, 0, 0] for rate in range(4)],
    )
    for ended in range(3):
        now[0] = 100.0 * ended
        rows[ended][1] = "done"
        terminal.table(columns, rows)
    terminal.close()
    assert "1 of 4 trials ended" in shown.getvalue()
    assert "3/4 01:40" in shown.getvalue()
    rows[3][1] = "done"
    terminal.table(columns, rows)
    last = shown.getvalue().splitlines()[-1]
    assert last.split() == ["3", "done", "5", "1.5", "0", "0"], "a table of the end needs no bar"


def test_a_training_is_shown_from_its_folder(tmp_path: Any) -> None:
    """Catches steps that are shown twice or before there is a plan, rows at once that nobody hears of, and an untold end."""
    asked = config_from({"name": "run", "storage": str(tmp_path), "scaling": {"use_gpu": True}}, {})
    folder, heard, plan = run_folder(asked), Heard(), planned()
    begun = to_yaml(config_from(asked.model_dump(mode="json"), {"train.micro_rows": 4}))
    folder.write_bytes("config.yaml", begun.encode())
    file, look = MetricsFile(folder, -1), steps_shown(asked, heard)
    look()
    file.append([{"step": 1, "train/loss": 2.5}])
    look()
    assert heard.steps == [], "there is no plan yet"
    folder.write_bytes("plan.parquet", save_plan(plan))
    look()
    look()
    with watched(look, 60.0):
        file.append([{"step": 2, "train/loss": 1.25, "train/tokens_per_second": 1234.5, "eval/solved": 0.5}])
    assert heard.notes == ["run: rows at once (train.micro_rows) 4"]
    assert heard.steps == [
        ("run, steps", 1, plan.num_steps, "loss 2.500"),
        ("run, steps", 2, plan.num_steps, "loss 1.250 tokens/s 1234 solved 0.500"),
    ]


def test_a_watch_ends_with_its_work_however_that_ends() -> None:
    """Catches a thread that goes on looking after its work has failed, and a last look at what was interrupted."""
    looks, threads = list[int](), threading.active_count()

    def fail() -> None:
        with watched(lambda: looks.append(threading.get_ident()), 0.01):
            while len(looks) < 3:
                time.sleep(0.01)
            raise ValueError("failed")

    with pytest.raises(ValueError, match="failed"):
        fail()
    assert threading.get_ident() not in looks, (
        "what was interrupted is not looked at again: its search would seem ended"
    )
    assert threading.active_count() == threads


def test_a_watch_outlives_a_storage_that_does_not_answer_for_a_while() -> None:
    """Catches a watcher that dies with its first failed look: nothing more is shown, and a search writes no best.yaml."""
    looks = list[int]()

    def look() -> None:
        looks.append(len(looks))
        if len(looks) in (1, 2):
            raise (OSError if len(looks) == 1 else UserError)("no answer")

    with watched(look, 0.01):
        while len(looks) < 4:
            time.sleep(0.01)
