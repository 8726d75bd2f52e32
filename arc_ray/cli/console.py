"""Progress on a terminal: bars and tables that move; elsewhere (a job's log, a file) plain lines, and few of them."""

import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from arc_ray.errors import plain

PLAIN_EVERY_SECONDS = 15.0
"""Between two plain lines about one thing; its end is always told."""

MOST_ROWS = 12
TRIALS_BAR = "trials"
SPEED_SECONDS = 3600.0
"""A bar tells the time left by so many last seconds: trials, and steps of large models, take minutes each."""


class Terminal:
    """Shows progress as `arc_ray.progress.Progress` describes it."""

    def __init__(self) -> None:
        self.console = Console(soft_wrap=True, highlight=False, markup=False)
        self._is_live = self.console.is_terminal
        self._bar: Progress | None = None
        self._bar_of: str | None = None
        self._task: Any = None
        self._told: dict[str, float] = {}
        self._last_table = ""

    def stage(self, number: int, total: int, title: str) -> None:
        """Print a heading."""
        self.close()
        self.console.print(
            f"\n[bold]\\[{number}/{total}] {title}[/bold]" if self._is_live else f"[{number}/{total}] {title}",
            markup=self._is_live,
        )

    def note(self, text: str) -> None:
        """Print a line."""
        self.close()
        self.console.print(f"  {plain(text)}")

    def advance(self, what: str, done: float, total: float, detail: str = "") -> None:
        """Move the bar of this work, or print a line if it is time for one."""
        if not self._is_live:
            self._tell(what, done, total, detail)
            return
        if self._bar is None or self._bar_of != what:
            self.close()
            self._bar = Progress(
                TextColumn("  {task.description}", markup=False),
                BarColumn(bar_width=30),
                MofNCompleteColumn(table_column=Column(no_wrap=True)),  # on a narrow terminal the bar shrinks
                TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
                TextColumn("{task.fields[detail]}"),
                console=self.console,
                speed_estimate_period=SPEED_SECONDS,
            )
            self._bar.start()
            self._bar_of, self._task = what, self._bar.add_task(what, total=total, detail=detail)
        self._bar.update(self._task, completed=done, total=total, detail=detail)
        if done >= total:
            self.close()

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Print the table if it changed, at most every few seconds; on a terminal a bar below it tells the time left."""
        text = repr(rows)
        ended = sum(row[-5] in ("done", "stopped", "failed") for row in rows)
        is_due = time.monotonic() - self._told.get("table", -1e9) > PLAIN_EVERY_SECONDS or ended == len(rows)
        if text != self._last_table and is_due:
            self._last_table, self._told["table"] = text, time.monotonic()
            self._print_table(columns, rows, f"{ended} of {len(rows)} trials ended")
        if self._is_live and (ended < len(rows) or self._bar_of == TRIALS_BAR):
            self.advance(TRIALS_BAR, ended, len(rows))

    def _print_table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str) -> None:
        if self._bar_of != TRIALS_BAR:
            self.close()
        table = Table(title=title, title_justify="left", box=None, padding=(0, 1))
        for column in columns:
            table.add_column(column)
        for row in rows[:MOST_ROWS]:
            table.add_row(*(plain(str(cell)) for cell in row))
        self.console.print(table)
        if len(rows) > MOST_ROWS:
            self.console.print(f" ... and {len(rows) - MOST_ROWS} more")

    def close(self) -> None:
        """End the bar that is moving."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._bar_of = None

    def _tell(self, what: str, done: float, total: float, detail: str) -> None:
        now = time.monotonic()
        if done < total and now - self._told.get(what, -1e9) < PLAIN_EVERY_SECONDS:
            return
        if done >= total and self._told.get(what) == float("inf"):
            return
        self._told[what] = float("inf") if done >= total else now
        print(f"  {what}: {done:g} of {total:g} {detail}".rstrip(), flush=True)
