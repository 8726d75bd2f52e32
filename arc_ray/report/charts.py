"""The charts of the page: effect of each varied key, parallel coordinates, learning curves."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from arc_ray.report.drawing import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Chart,
    Line,
    Mark,
    Scale,
    Tick,
    padded,
    path,
    thinned,
    x_scale,
    y_scale,
)
from arc_ray.report.frames import Column, Frame, scalar
from arc_ray.report.load import Report
from arc_ray.report.words import is_number, number, setting, setting_value, short_key, shortened, show, word
from arc_ray.scores.analysis import at_equal_tokens

CURVES = ("train/loss", "eval/loss", "eval/solved", "eval/cell_accuracy")
TOKENS = "train/learned_tokens"
WIDE = 1000.0
"""Width of the parallel coordinates, which have a row of the page to themselves."""
LOG_FROM = 4.0
"""Values whose largest is so many times the smallest are drawn on a logarithmic axis."""
CHARACTER = 6.5
"""Width of a character of a label."""
DODGE = 9.0
"""Distance between the arms' marks at the same value, so that they do not hide each other."""


def effect_charts(report: Report) -> list[Chart]:
    """Draw the metric over each varied key, one chart a key, every trial a mark, the mean of each arm a line."""
    trials = report.measured
    charts = [effect_chart(trials, key, report.metric, report.arms) for key in report.varied if len(trials)]
    if len(trials) and trials["arm"].nunique() > 1 and report.kind != "runs":
        charts.append(effect_chart(trials, "arm", report.metric, report.arms, short_key(report.compare)))
    return charts


def effect_chart(trials: Frame, key: str, metric: str, arms: Sequence[str], name: str | None = None) -> Chart:
    """Draw a metric over the values of one column of `trials`; numbers far apart go on a logarithmic axis."""
    name, trials = name or short_key(key), trials.dropna(subset=[key])
    place, ticks = _places(trials[key], arms if key == "arm" else ())
    y = y_scale(*padded(trials[metric].astype(float), 0.0))
    marks, lines = [], []
    for i, arm in enumerate(arms):
        here = trials[trials["arm"] == arm]
        shift = 0.0 if key == "arm" else DODGE * (i - (len(arms) - 1) / 2)
        spread = np.linspace(-14, 14, len(here)) if key == "arm" and len(here) > 1 else np.zeros(len(here))
        for (_, trial), aside in zip(here.iterrows(), spread, strict=True):
            marks.append(
                Mark(
                    place(trial[key]) + shift + aside,
                    y(trial[metric]),
                    i,
                    trial["trial"],
                    _title(trial, metric, name, key),
                )
            )
        means = here.groupby(key)[metric].mean()
        if key == "arm" and len(here) > 1:
            at, mean = place(arm), y(means[arm])
            lines.append(Line(path([(at - 24, mean), (at + 24, mean)]), i, "mean"))
        elif 1 < len(means) < len(here):
            lines.append(Line(path((place(value) + shift, y(mean)) for value, mean in means.items()), i, "mean"))
    summary = f"{word(metric).label} over {name}; {len(trials)} trials"
    return Chart(f"{word(metric).label} by {name}", summary, name, ticks, _y_ticks(y, metric), lines, marks)


def equal_tokens_chart(report: Report) -> tuple[Chart, float] | None:
    """Draw every finished trial's metric at the most tokens that all of them have learned, and return these tokens.

    Over epochs where they vary, else by arm; None where neither does, or nothing is finished.
    """
    done = report.measured[report.measured["status"] == "done"]
    key = next((key for key in ("train.epochs", "arm") if key in done and done[key].nunique() > 1), None)
    curves = {t: c for t in done["trial"] if len((c := _curve(report, t, report.metric))[0]) > 1}
    if not curves or key is None:
        return None
    tokens = min(float(x[-1]) for x, _ in curves.values())
    values = at_equal_tokens(curves, tokens)
    at_tokens = done.assign(**{report.metric: done["trial"].map(values)}).dropna(subset=[report.metric])
    chart = effect_chart(
        at_tokens, key, report.metric, report.arms, short_key(report.compare) if key == "arm" else None
    )
    return replace(chart, title=f"{chart.title}, at {number(tokens)} learned tokens"), tokens


def parallel_chart(report: Report) -> Chart | None:
    """Draw every trial as a line through its settings to its result; None where nothing varies."""
    metric = report.metric
    trials = report.measured
    keys = ["arm", *report.varied, "seed"] if trials["arm"].nunique() > 1 else [*report.varied, "seed"]
    keys = [key for key in keys if trials[key].nunique() > 1]
    trials = trials.dropna(subset=keys)
    if not keys or len(trials) < 2:
        return None
    width, height = WIDE, HEIGHT + 40
    xs = np.linspace(LEFT + 14, width - LEFT - 14, len(keys) + 1)
    result = Scale(*padded(trials[metric].astype(float), 0.0), height - BOTTOM, TOP + 18)
    scales = {
        key: _places(trials[key], report.arms if key == "arm" else (), (height - BOTTOM - 14, TOP + 32)) for key in keys
    }
    lines = []
    for n, (_, trial) in enumerate(trials.iterrows()):
        spread = 12 * (n / max(len(trials) - 1, 1) - 0.5)
        points = [(x, scales[key][0](trial[key]) + spread) for x, key in zip(xs, keys, strict=False)]
        points.append((xs[-1], result(trial[metric])))
        title = _title(trial, metric, "", "arm", keys)
        lines.append(Line(path(points), report.arms.index(trial["arm"]), "trial", trial["trial"], title))
    names = [short_key(report.compare) if key == "arm" else short_key(key) for key in keys] + [word(metric).label]
    values = [(x, tick.at, tick.label) for x, key in zip(xs, keys, strict=False) for tick in scales[key][1]]
    values += [(xs[-1], tick.at, tick.label) for tick in _y_ticks(result, metric)]
    axes = [Tick(x, name) for x, name in zip(xs, names, strict=True)]
    summary = f"Each line is one of {len(trials)} trials, from its settings to {word(metric).label}"
    return Chart("every trial", summary, "", (), (), lines, (), axes, values, width, height)


def curve_charts(report: Report, chosen: Mapping[str, Mapping[str, Any]]) -> list[Chart]:
    """Draw losses and accuracies over learned tokens: all seeds of each arm's chosen setting thin, their mean thick."""
    trials = report.trials[report.trials["status"] != "failed"]
    members = {arm: trials_at(trials, arm, values)["trial"].tolist() for arm, values in chosen.items()}
    charts = []
    for metric in CURVES:
        curves = {a: [c for t in ts if len((c := _curve(report, t, metric))[0]) > 1] for a, ts in members.items()}
        if any(curves.values()):
            charts.append(_curve_chart(curves, metric, report.arms))
    return charts


def trials_at(trials: Frame, arm: str, values: Mapping[str, Any]) -> Frame:
    """Select an arm's trials of one setting (config key -> value), all seeds."""
    here = trials[trials["arm"] == arm]
    for key, value in values.items():
        if key in here:
            is_unset = isinstance(value, float) and math.isnan(value)
            here = here[here[key].isna() if is_unset else here[key] == scalar(value)]
    return here


def _curve_chart(
    curves: Mapping[str, Sequence[tuple[np.ndarray, np.ndarray]]], metric: str, arms: Sequence[str]
) -> Chart:
    everything = [curve for of_arm in curves.values() for curve in of_arm]
    # Tune's folders of other programs count no learned tokens.
    x = x_scale(0.0, max(float(xs[-1]) for xs, _ in everything) or 1.0)
    thin = {arm: [thinned(*curve) for curve in of_arm] for arm, of_arm in curves.items()}
    y = y_scale(*padded((float(v) for of_arm in thin.values() for _, ys in of_arm for v in ys), 0.0))
    lines = []
    for arm, of_arm in thin.items():
        i = arms.index(arm)
        lines += [
            Line(path((x(a), y(b)) for a, b in zip(*c, strict=True)), i, "thin") for c in of_arm if len(of_arm) > 1
        ]
    for arm, of_arm in thin.items():
        if of_arm:
            lines.append(Line(path((x(a), y(b)) for a, b in _mean_curve(of_arm)), arms.index(arm), "mean"))
    seeds = ", ".join(f"{arm}: {len(of_arm)}" for arm, of_arm in curves.items())
    summary = f"{word(metric).label} over learned tokens; seeds of {seeds}"
    ticks = [Tick(x(v), number(v)) for v in x.ticks()]
    return Chart(word(metric).label, summary, word(TOKENS).label, ticks, _y_ticks(y, metric), lines)


def _mean_curve(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[tuple[float, float]]:
    """Average curves point by point, as far as the shortest goes."""
    end = min(xs[-1] for xs, _ in curves)
    xs = np.unique(np.concatenate([xs[xs <= end] for xs, _ in curves]))
    means = np.mean([np.interp(xs, *curve) for curve in curves], axis=0)
    return list(zip(xs.tolist(), means.tolist(), strict=True))


def _curve(report: Report, trial: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
    if metric not in report.metrics:
        return np.zeros(0), np.zeros(0)
    rows = report.metrics[(report.metrics["trial"] == trial) & report.metrics[metric].notna()]
    return rows[TOKENS].to_numpy(float), rows[metric].to_numpy(float)


def _places(
    values: Column, order: Sequence[str] = (), ends: tuple[float, float] | None = None
) -> tuple[Any, list[Tick]]:
    """Give every value its place on an axis, with ticks: numbers to scale, anything else at equal distances."""
    start, end = ends or (LEFT + 26, WIDTH - RIGHT - 26)
    distinct = sorted(values.dropna().unique(), key=lambda v: (isinstance(v, str), v)) if not order else list(order)
    if not order and len(distinct) > 1 and all(is_number(v) for v in distinct):
        low, high = float(distinct[0]), float(distinct[-1])
        scale = Scale(low, high, start, end, is_log=low > 0 and high / low >= LOG_FROM)
        shown = distinct if len(distinct) <= 5 else scale.ticks()
        return scale, [Tick(scale(float(v)), setting_value(float(v))) for v in shown]
    step = (end - start) / max(len(distinct) - 1, 1)
    at = {value: start + (i * step if len(distinct) > 1 else (end - start) / 2) for i, value in enumerate(distinct)}
    room = int(step / CHARACTER) if len(distinct) > 1 and not ends else 16
    return at.__getitem__, [Tick(place, shortened(setting_value(value), room)) for value, place in at.items()]


def _y_ticks(scale: Scale, metric: str) -> list[Tick]:
    is_share = word(metric).unit == "%"
    return [Tick(scale(v), f"{100 * v:g} %" if is_share else f"{v:g}") for v in scale.ticks()]


def _title(trial: Any, metric: str, name: str, key: str, keys: Sequence[str] = ()) -> str:
    values = (
        {k: trial[k] for k in keys if k not in ("arm", "seed")}
        if keys
        else ({name: trial[key]} if key != "arm" else {})
    )
    about = f"{trial['arm']}, seed {trial['seed']}" + (f", {setting(values)}" if values else "")
    return f"{about}: {show(trial[metric], metric)}"
