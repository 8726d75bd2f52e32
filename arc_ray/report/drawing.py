"""What a chart is made of: scales, ticks, lines and marks in the units of an SVG; the template only writes them down.

Drawn by hand rather than by matplotlib, which was tried: it takes 0.8 s to import and 0.08 s a chart where a whole report
takes 1 s, a chart of it is 40 kB, and its SVG would have to be taken apart again for what the page does with a picture:
colours and dashes of arms from the style sheet (light, dark and print from one drawing), a trial shown everywhere when
pointed at, text that grows on a phone. Charts are about as wide as a phone; a desk shows several side by side.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

WIDTH, HEIGHT = 360.0, 200.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 346.0, 12.0, 164.0
"""The drawing area of an ordinary chart."""


@dataclass(frozen=True)
class Scale:
    """Maps values from [low, high] to [start, end] on the picture, by their logarithm if wanted.

    Values beyond an end are drawn at it.
    """

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        value = min(max(value, self.low), self.high)
        low, high, value = (math.log(v) if self.is_log else v for v in (self.low, self.high, value))
        return round(self.start + (value - low) / (high - low) * (self.end - self.start), 1)

    def ticks(self, about: int = 5) -> list[float]:
        """Choose round values in the range: 1, 2 or 5 times a power of ten."""
        if self.is_log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            values = [float(f"{step}e{decade}") for decade in decades for step in (1, 2, 5)]
            values = values[::3] if len(decades) > about else values
        else:
            rough = (self.high - self.low) / about
            power = 10.0 ** math.floor(math.log10(rough))
            step = next(step * power for step in (1, 2, 5, 10) if step * power >= rough * 0.999)
            values = [round(i * step, 12) for i in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]
        slack = 1e-9 * (self.high - self.low)
        return [value for value in values if self.low - slack <= value <= self.high + slack]


class Tick(NamedTuple):
    """A labelled place on an axis."""

    at: float
    label: str


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
    x_label: str = ""
    x_ticks: Sequence[Tick] = ()
    y_ticks: Sequence[Tick] = ()
    lines: Sequence[Line] = ()
    marks: Sequence[Mark] = ()
    axes: Sequence[Tick] = ()
    """Vertical axes of parallel coordinates, by their names; none in an ordinary chart."""
    axis_values: Sequence[tuple[float, Tick]] = ()
    """Values written on those axes, each with its axis's place."""
    width: float = WIDTH
    height: float = HEIGHT

    @property
    def frame(self) -> tuple[float, float, float, float]:
        """Left, right, top and bottom of the drawing area."""
        return LEFT, RIGHT + self.width - WIDTH, TOP, BOTTOM + self.height - HEIGHT


def heights(values: Iterable[float], bottom: float = BOTTOM, top: float = TOP) -> Scale:
    """Make a vertical scale from a little below the values, but not below 0, to a little above."""
    values = [float(value) for value in values]
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.1 * abs(high) or 0.05
    return Scale(max(low - room, 0.0), high + room, bottom, top)


def thinned(x: np.ndarray, y: np.ndarray, most: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """Average neighbouring points until at most `most` are left, both (num_points,): a page need not hold each step."""
    if len(x) <= most:
        return x, y
    parts = np.array_split(np.arange(len(x)), most)
    return np.array([x[p].mean() for p in parts]), np.array([y[p].mean() for p in parts])
