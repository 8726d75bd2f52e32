"""The charts of the page: effect of each varied key, parallel coordinates, learning curves; the template writes them down.

Drawn by hand rather than by matplotlib, which was tried: it takes 0.8 s to import and 0.08 s a chart where a whole report
takes 1 s, a chart of it is 40 kB, and its SVG would have to be taken apart again for what the page does with a picture:
colours and dashes of arms from the style sheet (light, dark and print from one drawing), a trial shown everywhere when
pointed at, text that grows on a phone. Charts are about as wide as a phone; a desk shows several side by side.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from arc_ray.report.frames import TOKENS, Curve, DataFrame, Row, Series, curves_by_trial, mean_curve, thinned
from arc_ray.report.load import Report
from arc_ray.report.words import is_number, number, setting, setting_value, short_key, show, word
from arc_ray.scores.analysis import at_equal_tokens

CURVES = ("train/loss", "eval/loss", "eval/solved", "eval/cell_accuracy")
WIDTH, HEIGHT = 360.0, 200.0
"""Size of an ordinary chart, in the units of its SVG, as are all places."""
WIDE, TALL = 1000.0, 240.0
"""Size of the parallel coordinates, which have a row of the page to themselves."""
LEFT, RIGHT, TOP, BOTTOM = 46.0, 14.0, 12.0, 36.0
"""Margins of the drawing area."""
LOG_FROM = 4.0
"""Values whose largest is so many times the smallest are drawn on a logarithmic axis."""
CHARACTER, LINE = 6.5, 12.0
"""Width of a character of a label, and its height."""
DODGE = 9.0
"""Distance between the arms' marks at the same value, so that they do not hide each other."""
SPREAD = 28.0
"""Width over which the marks of one arm lie side by side."""

Ticks = dict[float, str]
"""Place on an axis -> label."""


@dataclass(frozen=True)
class Scale:
    """Maps values from [low, high] to [start, end] on the picture, by their logarithm if wanted; others to the ends."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        value = min(max(value, self.low), self.high)
        low, high, value = (math.log(v) if self.is_log else v for v in (self.low, self.high, value))
        share = (value - low) / (high - low) if high > low else 0.0
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self, about: int = 5) -> list[float]:
        """Choose round values in the range: 1, 2 or 5 times a power of ten; of a long logarithmic range powers alone."""
        if self.is_log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            steps = (1,) if self.high >= 100 * self.low else (1, 2, 5)
            values = [float(f"{step}e{decade}") for decade in decades for step in steps]
        else:
            rough = (self.high - self.low) / about
            power = 10.0 ** math.floor(math.log10(rough))
            step = next(step * power for step in (1, 2, 5, 10) if step * power >= rough * 0.999)
            values = [round(i * step, 12) for i in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]
        slack = 1e-9 * (self.high - self.low)
        return [value for value in values if self.low - slack <= value <= self.high + slack]


class Line(NamedTuple):
    """A line of an arm; `trial` ties it to the rows and marks of the same trial."""

    points: Sequence[tuple[float, float]]
    arm: int
    kind: str
    """ "thin" (one seed), "mean", or "trial"."""
    trial: str = ""
    title: str = ""

    @property
    def path(self) -> str:
        """The line as an SVG path, to a tenth of a unit."""
        return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in self.points)


class Mark(NamedTuple):
    """A trial's value; its shape and colour are the arm's."""

    x: float
    y: float
    arm: int
    trial: str
    title: str


@dataclass(frozen=True)
class Chart:
    """A picture with its axes."""

    title: str
    summary: str
    """What a reader who cannot see it is told; the shortest true description."""
    lines: Sequence[Line]
    marks: Sequence[Mark] = ()
    x_label: str = ""
    x_ticks: Ticks = field(default_factory=dict)
    y_ticks: Ticks = field(default_factory=dict)
    axes: Sequence[tuple[float, str, Ticks]] = ()
    """Vertical axes of parallel coordinates: place, name and ticks; none in an ordinary chart."""
    width: float = WIDTH
    height: float = HEIGHT
    csv: str = ""
    """The numbers that are drawn."""


def effect_charts(report: Report) -> list[Chart]:
    """Draw the metric over each varied key, one chart a key, every trial a mark, the mean of each arm a line."""
    trials = report.measured
    keys = [*report.varied, *(["arm"] if trials["arm"].nunique() > 1 else [])]
    return [_effect_chart(report, trials, key) for key in keys if len(trials)]


def equal_tokens_chart(report: Report) -> tuple[Chart, float] | None:
    """Draw every finished trial's metric at the most tokens that all of them have learned, and return these tokens.

    Over epochs where they vary, else by arm; None where neither does, or nothing is finished.
    """
    done = report.measured[report.measured["status"] == "done"]
    key = next((key for key in ("train.epochs", "arm") if key in done and done[key].nunique() > 1), None)
    curves = {
        trial: curve
        for trial, curve in curves_by_trial(report.metrics, report.metric).items()
        if trial in set(done["trial"])
    }
    if not curves or key is None:
        return None
    tokens, values = at_equal_tokens(curves)
    reached = done.assign(**{report.metric: done["trial"].map(values)}).dropna(subset=[report.metric])
    chart = _effect_chart(report, reached, key)
    return replace(chart, title=f"{chart.title}, at {number(tokens)} learned tokens"), tokens


def parallel_chart(report: Report) -> Chart | None:
    """Draw every trial as a line through its settings to its result; None where nothing varies."""
    metric, trials = report.metric, report.measured
    keys = [key for key in ("arm", *report.varied, "seed") if trials[key].nunique() > 1]
    trials = trials.dropna(subset=keys)
    if not keys or len(trials) < 2:
        return None
    *xs, last = np.linspace(LEFT + 14, WIDE - LEFT - 14, len(keys) + 1).round(1)
    bottom, y = TALL - BOTTOM, _heights(trials[metric], TALL - BOTTOM, TOP + 18)
    places = [_places(report, trials[key], key, (bottom - 14, TOP + 32)) for key in keys]
    lines = []
    for trial, aside in zip(trials.to_dict("records"), np.linspace(-6, 6, len(trials)), strict=True):
        points = [(x, place(trial[key]) + aside) for x, key, (place, _) in zip(xs, keys, places, strict=True)]
        points.append((last, y(trial[metric])))
        title = _title(trial, metric, {key: trial[key] for key in keys if key not in ("arm", "seed")})
        lines.append(Line(points, report.arms.index(trial["arm"]), "trial", trial["trial"], title))
    axes = [(x, _name(report, key), ticks) for x, key, (_, ticks) in zip(xs, keys, places, strict=True)]
    axes.append((last, word(metric).label, _y_ticks(y, metric)))
    summary = f"Each line is one of {len(trials)} trials, from its settings to {word(metric).label}"
    csv = _csv(trials, *keys, metric)
    return Chart("every trial", summary, lines, axes=axes, width=WIDE, height=TALL, csv=csv)


def curve_charts(report: Report, chosen: Mapping[str, DataFrame]) -> list[Chart]:
    """Draw losses and accuracies over learned tokens: each arm's `chosen` trials thin, their mean thick."""
    members = {arm: trials[trials["status"] != "failed"]["trial"] for arm, trials in chosen.items() if len(trials)}
    charts = []
    for metric in CURVES:
        curves = curves_by_trial(report.metrics, metric)
        by_arm = {arm: [curves[name] for name in names if name in curves] for arm, names in members.items()}
        if any(by_arm.values()):
            charts.append(_curve_chart(by_arm, metric, report.arms))
    return charts


def _effect_chart(report: Report, trials: DataFrame, key: str) -> Chart:
    metric, name, trials = report.metric, _name(report, key), trials.dropna(subset=[key])
    place, ticks = _places(report, trials[key], key)
    y = _heights(trials[metric])
    marks, lines = [], []
    for i, arm in enumerate(report.arms):
        here = trials[trials["arm"] == arm]
        means = here.groupby(key)[metric].mean().items()
        if key == "arm":
            asides = (np.arange(len(here)) - (len(here) - 1) / 2) * SPREAD / max(len(here) - 1, 1)
            mean = [(place(arm) + aside, y(value)) for _, value in means for aside in (-24, 24)]
        else:
            asides = np.full(len(here), DODGE * (i - (len(report.arms) - 1) / 2))
            mean = [(place(value) + asides[0], y(mean)) for value, mean in means]
        for trial, aside in zip(here.to_dict("records"), asides, strict=True):
            title = _title(trial, metric, {} if key == "arm" else {name: trial[key]})
            marks.append(Mark(round(place(trial[key]) + aside, 1), y(trial[metric]), i, trial["trial"], title))
        if len(mean) > 1 and len(here) > (1 if key == "arm" else len(mean)):
            lines.append(Line(mean, i, "mean"))
    label = word(metric).label
    summary = f"{label} over {name}; {len(trials)} trials"
    csv = _csv(trials, key, metric)
    return Chart(f"{label} by {name}", summary, lines, marks, name, ticks, _y_ticks(y, metric), csv=csv)


def _curve_chart(by_arm: Mapping[str, Sequence[Curve]], metric: str, arms: Sequence[str]) -> Chart:
    # Tune's folders of other programs count no learned tokens.
    most = max(float(xs[-1]) for xs, _ in chain.from_iterable(by_arm.values())) or 1.0
    x = Scale(0.0, most, LEFT, WIDTH - RIGHT)
    thin = {arm: [thinned(*curve) for curve in curves] for arm, curves in by_arm.items()}
    y = _heights(value for curves in thin.values() for _, ys in curves for value in ys)
    drawn = [(arm, "thin", curve) for arm, curves in thin.items() for curve in curves if len(curves) > 1]
    drawn += [(arm, "mean", mean_curve(curves)) for arm, curves in thin.items() if curves]
    lines = [Line([(x(a), y(b)) for a, b in zip(*c, strict=True)], arms.index(arm), kind) for arm, kind, c in drawn]
    seeds = ", ".join(f"{arm}: {len(curves)}" for arm, curves in by_arm.items())
    summary = f"{word(metric).label} over learned tokens; seeds of {seeds}"
    ticks = {x(value): number(value) for value in x.ticks()}
    points = [(arm, kind, *point) for arm, kind, curve in drawn for point in zip(*curve, strict=True)]
    csv = pd.DataFrame(points, columns=["arm", "line", TOKENS, metric]).to_csv(index=False, float_format="%.6g")
    return Chart(word(metric).label, summary, lines, (), word(TOKENS).label, ticks, _y_ticks(y, metric), csv=csv)


def budget_chart(report: Report, name: str, axis: str, table: DataFrame) -> Chart:
    """Draw what fewer answers of a set come to, over their number or what they cost: each arm's share solved with its
    interval, thin the best possible."""
    x = Scale(table["x"].min(), table["x"].max(), LEFT + 10, WIDTH - RIGHT - 10, is_log=True)
    y, lines = _heights([0.0, *table["high"], *table["best"]]), []
    arms = list(dict.fromkeys([*report.arms, *table["arm"]]))
    for arm, rows in table.groupby("arm", sort=False):
        columns = ("low", "high", "best", "solved")
        low, high, best, solved = ([(x(a), y(b)) for a, b in zip(rows["x"], rows[c], strict=True)] for c in columns)
        drawn = (([*low, *reversed(high)], "band"), (best, "thin"), (solved, "mean"))
        lines += [Line(points, arms.index(arm), kind) for points, kind in drawn]
    ticks = _apart({x(value): number(value) for value in sorted(table["x"].unique())}, is_vertical=False)
    lines.sort(key=lambda line: line.kind != "band")  # no band hides another arm's line
    title, csv = f"{name} by {axis}", table.to_csv(index=False, float_format="%.6g")
    return Chart(title, f"solved over {axis}, {name}", lines, (), axis, ticks, _y_ticks(y, "per_output"), csv=csv)


def _csv(trials: DataFrame, *columns: str) -> str:
    return trials[list(dict.fromkeys(["trial", "arm", "seed", *columns]))].to_csv(index=False, float_format="%.6g")


def _places(
    report: Report, values: Series, key: str, ends: tuple[float, float] | None = None
) -> tuple[Callable[[Any], float], Ticks]:
    """Give every value its place on an axis, with ticks: numbers to scale, anything else at equal distances."""
    start, end = ends or (LEFT + 26, WIDTH - RIGHT - 26)
    distinct = sorted(values.dropna().unique(), key=lambda v: (isinstance(v, str), v))
    if key == "arm":
        distinct = report.arms
    elif len(distinct) > 1 and all(is_number(v) for v in distinct):
        low, high = float(distinct[0]), float(distinct[-1])
        scale = Scale(low, high, start, end, is_log=low > 0 and high / low >= LOG_FROM)
        shown = distinct if len(distinct) <= 5 else scale.ticks()
        return scale, _apart({scale(float(v)): setting_value(float(v)) for v in shown}, is_vertical=ends is not None)
    gap, first = (end - start) / max(len(distinct) - 1, 1), start if len(distinct) > 1 else (start + end) / 2
    at = {value: round(first + i * gap, 1) for i, value in enumerate(distinct)}
    room = int(gap / CHARACTER) if len(distinct) > 1 and not ends else 16
    labels = {place: setting_value(value) for value, place in at.items()}
    cut = {place: name if len(name) <= room else name[: max(room - 1, 1)] + "…" for place, name in labels.items()}
    return at.__getitem__, cut


def _apart(ticks: Ticks, is_vertical: bool) -> Ticks:
    """Leave out labels that would touch the one before."""
    kept: Ticks = {}
    for place, label in ticks.items():
        last = next(reversed(kept), None)
        size = LINE if is_vertical or last is None else CHARACTER * (len(label) + len(kept[last])) / 2
        if last is None or abs(place - last) > size:
            kept[place] = label
    return kept


def _heights(values: Iterable[float], bottom: float = HEIGHT - BOTTOM, top: float = TOP) -> Scale:
    """Make a vertical scale from a little below the values, but not below 0, to a little above."""
    values = [float(value) for value in values]
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.1 * abs(high) or 0.05
    return Scale(max(low - room, 0.0), high + room, bottom, top)


def _y_ticks(scale: Scale, metric: str) -> Ticks:
    is_share = word(metric).unit == "%"
    return {scale(v): f"{100 * v:g} %" if is_share else f"{v:g}" for v in scale.ticks()}


def _name(report: Report, key: str) -> str:
    return short_key(report.compare if key == "arm" else key)


def _title(trial: Row, metric: str, values: Mapping[str, Any]) -> str:
    about = ", ".join(filter(None, [f"{trial['arm']}, seed {trial['seed']}", setting(values)]))
    return f"{about}: {show(trial[metric], metric)}"
