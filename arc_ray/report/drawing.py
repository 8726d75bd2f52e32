"""What a chart is made of: scales, ticks, lines and marks in the units of an SVG; the template only writes them down.

Charts are drawn about as wide as a phone, so that their text is as large as the page's on any screen: a desk shows
several side by side. Colours come from the style sheet by the arm's number: one drawing serves light, dark and print.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

Point = tuple[float, float]

WIDTH, HEIGHT = 360.0, 200.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 14.0, 12.0, 36.0


@dataclass(frozen=True)
class Scale:
    """Maps values from [low, high] to [start, end] on the picture, by their logarithm if wanted."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (math.log(v) if self.is_log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, about: int = 5) -> list[float]:
        """Choose round values in the range: 1, 2 or 5 times a power of ten."""
        if self.is_log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            steps = (1,) if len(decades) > about else (1, 2, 5)
            values = [float(f"{step}e{decade}") for decade in decades for step in steps]
        else:
            step = _round_step((self.high - self.low) / about)
            values = [round(i * step, 12) for i in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]
        slack = 1e-9 * (self.high - self.low)
        return [value for value in values if self.low - slack <= value <= self.high + slack]


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis."""

    at: float
    label: str


@dataclass(frozen=True)
class Line:
    """A line of an arm; `trial` ties it to the rows and marks of the same trial."""

    path: str
    arm: int
    kind: str
    """ "thin" (one seed), "mean", or "trial"."""
    trial: str = ""
    title: str = ""


@dataclass(frozen=True)
class Mark:
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
    x_label: str
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    lines: Sequence[Line] = ()
    marks: Sequence[Mark] = ()
    axes: Sequence[Tick] = field(default=())
    """Vertical axes of parallel coordinates, by their names; None for an ordinary chart."""
    axis_values: Sequence[tuple[float, float, str]] = ()
    """Values written on those axes: x, y, text."""
    width: float = WIDTH
    height: float = HEIGHT

    @property
    def frame(self) -> tuple[float, float, float, float]:
        """Left, right, top and bottom of the drawing area."""
        return LEFT, self.width - RIGHT, TOP, self.height - BOTTOM


def padded(values: Iterable[float], floor: float | None = None) -> tuple[float, float]:
    """Return a range a little larger than the values; not below `floor`."""
    values = list(values)
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.1 * abs(high) or 0.05
    low, high = low - room, high + room
    return (max(low, floor), high) if floor is not None else (low, high)


def x_scale(low: float, high: float, is_log: bool = False) -> Scale:
    """Make the horizontal scale of an ordinary chart."""
    return Scale(low, high, LEFT, WIDTH - RIGHT, is_log)


def y_scale(low: float, high: float, height: float = HEIGHT) -> Scale:
    """Make the vertical scale of an ordinary chart: larger values are higher."""
    return Scale(low, high, height - BOTTOM, TOP)


def path(points: Iterable[Point]) -> str:
    """Write a polyline as an SVG path, to a tenth of a unit."""
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def thinned(x: np.ndarray, y: np.ndarray, most: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """Average neighbouring points until at most `most` are left, both (num_points,): a page need not hold each step."""
    if len(x) <= most:
        return x, y
    parts = np.array_split(np.arange(len(x)), most)
    return np.array([x[p].mean() for p in parts]), np.array([y[p].mean() for p in parts])


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= rough * 0.999)
