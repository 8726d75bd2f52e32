"""What the page says: the meaning of every metric, with what it does not mean, and how numbers are written."""

import math
import tomllib
from collections.abc import Mapping
from importlib.resources import files
from typing import Any, NamedTuple

from arc_ray.config import value_name


class Word(NamedTuple):
    """A metric as people read it; see `templates/words.toml`."""

    label: str
    unit: str = ""
    meaning: str = ""
    caution: str = ""


WORDS: Mapping[str, Word] = {
    metric: Word(**about)
    for metric, about in tomllib.loads((files("arc_ray.report") / "templates" / "words.toml").read_text()).items()
}
RULES = ("per_output", "per_task_mean", "strict")
MORE_RULES = ("correct_size", "cell_accuracy", "unanswered")

NO_NUMBER = "–"
"""Written where there is no number."""


def word(metric: str) -> Word:
    """Return the words for a metric; one that is not listed speaks for itself."""
    for name in ("eval/solved", "eval/cell_accuracy", "answers/solved", "answers/cell_accuracy"):
        if metric.startswith(f"{name}/"):
            return WORDS[name]._replace(label=f"{WORDS[name].label}: {metric.removeprefix(f'{name}/')}")
    return WORDS.get(metric, Word(metric))


def show(value: Any, metric: str) -> str:
    """Write a value of a metric with its unit, but without the unit's name where that is long: the heading says it."""
    if not is_number(value):
        return NO_NUMBER
    return percent(value) if word(metric).unit == "%" else number(value)


def is_number(value: Any) -> bool:
    """Tell whether this is a finite number (numpy's kinds are numbers too)."""
    return value is not None and not isinstance(value, bool | str) and math.isfinite(value)


def percent(share: Any, digits: int = 1) -> str:
    """Write a share as percent."""
    return f"{100 * share:.{digits}f} %" if is_number(share) else NO_NUMBER


def level(confidence: float) -> str:
    """Write the level of an interval: 95 %, 99.5 %."""
    return f"{100 * confidence:g} %"


def in_points(difference: Any) -> str:
    """Write a difference of shares as percentage points, with its sign."""
    return f"{100 * difference:+.1f}".replace("-", "−") if is_number(difference) else NO_NUMBER


SPENT = {"tokens": "tokens an output", "passes": "passes an output", "seconds": "seconds an output"}
"""What answers cost, as axes name it."""


def number(value: Any) -> str:
    """Write a number with three digits that count: 0.00214, 1.43, 12,300, 4.52 M."""
    if not is_number(value):
        return NO_NUMBER
    size = abs(value)
    if size >= 1e9:
        return f"{value / 1e9:.3g} G"
    if size >= 1e6:
        return f"{value / 1e6:.3g} M"
    if size >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"


def setting_value(value: Any) -> str:
    """Write the value of a config key as in YAML: 0.002, 2e-05, keep, true; a dash where a trial has none."""
    if isinstance(value, float) and not math.isfinite(value):
        return NO_NUMBER
    if isinstance(value, float):
        return f"{value:g}"
    return value_name(value.item() if hasattr(value, "item") else value)


def trial_value(key: str, value: Any) -> str:
    """Write what a trial has under a name: a metric with its unit, a time, or the value of a config key."""
    if key == "seconds":
        return duration(value)
    if "/" in key or key == "steps":
        return show(value, key)
    return number(value) if key == "seed" and is_number(value) else setting_value(value)


def setting(values: Mapping[str, Any]) -> str:
    """Write a setting in one line, keys by their last part: lr 0.002, epochs 2."""
    return ", ".join(f"{short_key(key)} {setting_value(value)}" for key, value in values.items())


def short_key(key: str) -> str:
    """Return the last part of a dotted config key."""
    return key.rsplit(".", 1)[-1]


def duration(seconds: Any) -> str:
    """Write seconds as people say them: 48 s, 3 min 20 s, 2 h 05 min."""
    if not is_number(seconds):
        return NO_NUMBER
    whole = round(float(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
