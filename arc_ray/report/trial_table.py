"""The table of trials on the page, sortable."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from arc_ray.report.frames import DataFrame
from arc_ray.report.load import Report
from arc_ray.report.tables import best_trial
from arc_ray.report.words import duration, is_number, number, setting_value, short_key, show, word

MEASURES = ("eval/solved", "eval/cell_accuracy", "eval/loss", "train/loss", "steps", "train/learned_tokens")


class Column(NamedTuple):
    """A column of the page's table."""

    key: str
    label: str
    title: str
    """What the number means and does not; empty if the label says it."""
    is_text: bool


class Cell(NamedTuple):
    """What is written, and what is sorted by."""

    text: str
    sort: Any


def trial_view(report: Report, chosen: Mapping[str, DataFrame]) -> dict[str, Any]:
    """Lay the table out, best trials first: columns, rows of cells, which row is best, which were chosen or failed."""
    trials = report.trials
    order = [name for name in (report.metric, "eval/cell_accuracy") if name in trials]
    trials = trials.sort_values(order, ascending=False, kind="stable") if order else trials
    columns = [column for column in _columns(report) if column.key in trials]
    members = {name for found in chosen.values() for name in found["trial"]} if report.varied else set()
    rows = [
        {
            "trial": record["trial"],
            "is_chosen": record["trial"] in members,
            "cells": [_cell(column, record[column.key]) for column in columns],
        }
        for record in trials.to_dict("records")
    ]
    failed = trials[trials["status"] == "failed"]
    failures = failed.assign(error=failed["error"].fillna("no reason given")).to_dict("records")
    return {"columns": columns, "rows": rows, "failures": failures, "best_trial": best_trial(report)}


def _columns(report: Report) -> list[Column]:
    named = [Column("trial", "trial" if report.is_search else "run", "", True)]
    named += [Column("arm", short_key(report.compare), "", True)] if report.is_search else []
    named += [Column(key, short_key(key), key, False) for key in report.varied]
    named += [Column("seed", "seed", "", False), Column("status", "status", "", True)]
    for key in dict.fromkeys([report.metric, *MEASURES]):
        words = word(key)
        named.append(Column(key, words.label, f"{words.meaning} {words.caution}".strip(), False))
    return [*named, Column("seconds", "time", "Seconds since the trial's start, starting up included.", False)]


def _cell(column: Column, value: Any) -> Cell:
    sort = value if is_number(value) or isinstance(value, str) else ""
    if column.key == "seconds":
        return Cell(duration(value), sort)
    if "/" in column.key or column.key == "steps":
        return Cell(show(value, column.key), sort)
    return Cell(number(value) if column.key == "seed" and is_number(value) else setting_value(value), sort)
