"""The charts of the page: effect of each varied key, parallel coordinates, learning curves."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np

from arc_ray.report.drawing import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, Chart, Line, Mark, Scale, Tick, heights, thinned
from arc_ray.report.frames import DataFrame, Row, Series
from arc_ray.report.load import Report
from arc_ray.report.words import is_number, number, setting, setting_value, short_key, shortened, show, word

CURVES = ("train/loss", "eval/loss", "eval/solved", "eval/cell_accuracy")
TOKENS = "train/learned_tokens"
WIDE, TALLER = 1000.0, 40.0
"""Width of the parallel coordinates, which have a row of the page to themselves, and how much taller they are."""
LOG_FROM = 4.0
"""Values whose largest is so many times the smallest are drawn on a logarithmic axis."""
CHARACTER = 6.5
"""Width of a character of a label."""
DODGE = 9.0
"""Distance between the arms' marks at the same value, so that they do not hide each other."""
SPREAD = 28.0
"""Width over which the marks of one arm lie side by side."""

Curve = tuple[np.ndarray, np.ndarray]
"""Learned tokens and values, each (num_points,)."""


def chart_view(report: Report, chosen: Mapping[str, DataFrame]) -> dict[str, Any]:
    """Draw all charts of a report; `chosen` has each arm's trials of its chosen setting."""
    return {
        "effect_charts": effect_charts(report) if report.is_search else [],
        "equal_tokens": equal_tokens_chart(report) if report.is_search else None,
        "parallel": parallel_chart(report) if report.is_search else None,
        "curves": curve_charts(report, chosen),
    }


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
    curves = {trial: curve for trial, curve in _curves(report, report.metric).items() if trial in set(done["trial"])}
    if not curves or key is None:
        return None
    tokens = min(float(xs[-1]) for xs, _ in curves.values())
    values = {trial: float(np.interp(tokens, *curve)) for trial, curve in curves.items() if curve[0][0] <= tokens}
    chart = _effect_chart(
        report, done.assign(**{report.metric: done["trial"].map(values)}).dropna(subset=[report.metric]), key
    )
    return replace(chart, title=f"{chart.title}, at {number(tokens)} learned tokens"), tokens


def parallel_chart(report: Report) -> Chart | None:
    """Draw every trial as a line through its settings to its result; None where nothing varies."""
    metric, trials = report.metric, report.measured
    keys = [key for key in ("arm", *report.varied, "seed") if trials[key].nunique() > 1]
    trials = trials.dropna(subset=keys)
    if not keys or len(trials) < 2:
        return None
    *xs, last = np.linspace(LEFT + 14, WIDE - LEFT - 14, len(keys) + 1).round(1)
    result = heights(trials[metric], BOTTOM + TALLER, TOP + 18)
    places, ticks = {}, {}
    for key in keys:
        places[key], ticks[key] = _places(report, trials[key], key, (BOTTOM + TALLER - 14, TOP + 32))
    lines = []
    for trial, aside in zip(trials.to_dict("records"), np.linspace(-6, 6, len(trials)), strict=True):
        points = [(x, places[key](trial[key]) + aside) for x, key in zip(xs, keys, strict=True)]
        points.append((last, result(trial[metric])))
        title = _title(trial, metric, {key: trial[key] for key in keys if key not in ("arm", "seed")})
        lines.append(Line(points, report.arms.index(trial["arm"]), "trial", trial["trial"], title))
    axes = [Tick(x, _name(report, key)) for x, key in zip(xs, keys, strict=True)] + [Tick(last, word(metric).label)]
    values = [(x, tick) for x, key in zip(xs, keys, strict=True) for tick in ticks[key]]
    values += [(last, tick) for tick in _y_ticks(result, metric)]
    summary = f"Each line is one of {len(trials)} trials, from its settings to {word(metric).label}"
    return Chart("every trial", summary, lines=lines, axes=axes, axis_values=values, width=WIDE, height=HEIGHT + TALLER)


def curve_charts(report: Report, chosen: Mapping[str, DataFrame]) -> list[Chart]:
    """Draw losses and accuracies over learned tokens: an arm's chosen trials thin, their mean thick."""
    members = {arm: trials[trials["status"] != "failed"]["trial"] for arm, trials in chosen.items()}
    charts = []
    for metric in CURVES:
        curves = _curves(report, metric)
        by_arm = {arm: [curves[name] for name in names if name in curves] for arm, names in members.items()}
        if any(by_arm.values()):
            charts.append(_curve_chart(by_arm, metric, report.arms))
    return charts


def _effect_chart(report: Report, trials: DataFrame, key: str) -> Chart:
    metric, name, trials = report.metric, _name(report, key), trials.dropna(subset=[key])
    place, ticks = _places(report, trials[key], key)
    y = heights(trials[metric])
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
    return Chart(f"{label} by {name}", summary, name, ticks, _y_ticks(y, metric), lines, marks)


def _curve_chart(by_arm: Mapping[str, Sequence[Curve]], metric: str, arms: Sequence[str]) -> Chart:
    # Tune's folders of other programs count no learned tokens.
    most = max(float(xs[-1]) for xs, _ in chain.from_iterable(by_arm.values())) or 1.0
    x = Scale(0.0, most, LEFT, RIGHT)
    thin = {arm: [thinned(*curve) for curve in curves] for arm, curves in by_arm.items()}
    y = heights(value for curves in thin.values() for _, ys in curves for value in ys)
    drawn = [(arm, "thin", curve) for arm, curves in thin.items() for curve in curves if len(curves) > 1]
    drawn += [(arm, "mean", _mean_curve(curves)) for arm, curves in thin.items() if curves]
    lines = [
        Line([(x(a), y(b)) for a, b in zip(*curve, strict=True)], arms.index(arm), kind) for arm, kind, curve in drawn
    ]
    seeds = ", ".join(f"{arm}: {len(curves)}" for arm, curves in by_arm.items())
    summary = f"{word(metric).label} over learned tokens; seeds of {seeds}"
    ticks = [Tick(x(v), number(v)) for v in x.ticks()]
    return Chart(word(metric).label, summary, word(TOKENS).label, ticks, _y_ticks(y, metric), lines)


def _mean_curve(curves: Sequence[Curve]) -> Curve:
    """Average curves point by point, as far as the shortest goes."""
    end = min(xs[-1] for xs, _ in curves)
    xs = np.unique(np.concatenate([xs[xs <= end] for xs, _ in curves]))
    return xs, np.mean([np.interp(xs, *curve) for curve in curves], axis=0)


def _curves(report: Report, metric: str) -> dict[str, Curve]:
    """Return every trial's curve of a metric that has at least two points."""
    if metric not in report.metrics:
        return {}
    rows = report.metrics[report.metrics[metric].notna()]
    return {
        trial: (curve[TOKENS].to_numpy(float), curve[metric].to_numpy(float))
        for trial, curve in rows.groupby("trial", sort=False)[[TOKENS, metric]]
        if len(curve) > 1
    }


def _places(
    report: Report, values: Series, key: str, ends: tuple[float, float] | None = None
) -> tuple[Callable[[Any], float], list[Tick]]:
    """Give every value its place on an axis, with ticks: numbers to scale, anything else at equal distances."""
    start, end = ends or (LEFT + 26, RIGHT - 26)
    distinct = sorted(values.dropna().unique(), key=lambda v: (isinstance(v, str), v))
    if key == "arm":
        distinct = report.arms
    elif len(distinct) > 1 and all(is_number(v) for v in distinct):
        low, high = float(distinct[0]), float(distinct[-1])
        scale = Scale(low, high, start, end, is_log=low > 0 and high / low >= LOG_FROM)
        shown = distinct if len(distinct) <= 5 else scale.ticks()
        return scale, [Tick(scale(float(v)), setting_value(float(v))) for v in shown]
    step = (end - start) / max(len(distinct) - 1, 1)
    at = {value: round(start + i * step, 1) for i, value in enumerate(distinct)}
    if len(distinct) == 1:
        at = {distinct[0]: (start + end) / 2}
    room = int(step / CHARACTER) if len(distinct) > 1 and not ends else 16
    return at.__getitem__, [Tick(place, shortened(setting_value(value), room)) for value, place in at.items()]


def _y_ticks(scale: Scale, metric: str) -> list[Tick]:
    is_share = word(metric).unit == "%"
    return [Tick(scale(v), f"{100 * v:g} %" if is_share else f"{v:g}") for v in scale.ticks()]


def _name(report: Report, key: str) -> str:
    return short_key(report.compare if key == "arm" else key)


def _title(trial: Row, metric: str, values: Mapping[str, Any]) -> str:
    about = ", ".join(filter(None, [f"{trial['arm']}, seed {trial['seed']}", setting(values)]))
    return f"{about}: {show(trial[metric], metric)}"
