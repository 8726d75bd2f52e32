"""How a grid is written as text and read back; an encoder is a value with a name, never an expression to evaluate."""

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from arc_ray.errors import UserError
from arc_ray.tasks.task import MAX_SIDE, NUM_COLORS, Grid

NoGrid = Literal[
    "empty", "bad_cell", "ragged", "too_large", "no_fence", "bad_row_number", "bad_shape_line", "shape_differs"
]
"""Why a text is no grid."""

DIGITS = tuple("0123456789")
SYMBOLS = ("ñ", "ò", "÷", "û", "ą", "ć", "ď", "ę", "Ě", "Ğ")
"""Single letters that are rare in text, for tokenizers that treat digits in groups (ironbar's arc24 chose such letters)."""


@dataclass(frozen=True)
class Encoder:
    """A way to write grids; `render` and `parse` are inverse to each other."""

    name: str
    cells: tuple[str, ...] = DIGITS
    """Text of each colour."""
    separator: str = ""
    """Between the cells of a row."""
    row_numbers: bool = False
    """Each row begins with its number, from 1."""
    fence: bool = False
    """The grid stands in a fenced block."""
    shape: bool = False
    """The fence line states height x width, so that a model commits to the shape before the first cell."""
    closed: bool = False
    """Each row, the last one too, ends with a newline."""

    def render(self, grid: Grid) -> str:
        """Write a grid (uint8, (h, w)) as text."""
        lines = (self.separator.join([self.cells[c] for c in row]) for row in grid.tolist())
        text = "\n".join(self._row_start(i) + line for i, line in enumerate(lines))
        return self._head(*grid.shape) + text + "\n" * self.closed + "\n```" * self.fence

    def cell_spans(self, height: int, width: int) -> npt.NDArray[np.int32]:
        """Return where each cell's text begins and ends in the rendered text: int32 (height * width, 2), in characters.

        All colours' texts are of one length, so the spans depend on the shape alone.
        """
        size, step = len(self.cells[0]), len(self.cells[0]) + len(self.separator)
        starts = np.array([len(self._row_start(row)) for row in range(height)])
        row_lengths = starts + width * step - len(self.separator) + 1
        rows = len(self._head(height, width)) + starts + np.cumsum(row_lengths) - row_lengths
        cells = (rows[:, None] + step * np.arange(width)).reshape(-1, 1)
        return (cells + np.array([0, size])).astype(np.int32)

    @property
    def opening(self) -> str:
        """The text that every grid begins with, whatever its shape and colours."""
        return self._head(1, 1).partition("1x1")[0] if self.shape else self._head(1, 1) + self._row_start(0)

    def parse(self, text: str) -> Grid | NoGrid:
        """Read a grid back; what is no grid gives the reason, as a word, instead."""
        text, stated = text.strip("\n"), None
        if self.fence:
            match = re.search(r"```grid([^\n]*)\n(.*?)\n```", text + "\n", re.DOTALL)
            if not match:
                return "no_fence"
            text = match[2]
            if self.shape:
                shape = re.fullmatch(r" shape: (\d+)x(\d+)", match[1])
                if not shape:
                    return "bad_shape_line"
                stated = (int(shape[1]), int(shape[2]))
        if not text:
            return "empty"
        rows: list[list[int]] = []
        for i, line in enumerate(text.split("\n")):
            start, size = self._row_start(i), len(self.cells[0])
            if not line.startswith(start):
                return "bad_row_number"
            line = line.removeprefix(start)
            parts = [line[at : at + size] for at in range(0, len(line), size)]
            parts = line.split(self.separator) if self.separator else parts
            if not parts or any(part not in self.cells for part in parts):
                return "bad_cell"
            rows.append([self.cells.index(part) for part in parts])
        if len({len(row) for row in rows}) > 1:
            return "ragged"
        if len(rows) > MAX_SIDE or len(rows[0]) > MAX_SIDE:
            return "too_large"
        grid = np.array(rows, np.uint8)
        return "shape_differs" if stated and stated != grid.shape else grid

    def _head(self, height: int, width: int) -> str:
        if not self.fence:
            return ""
        return f"```grid shape: {height}x{width}\n" if self.shape else "```grid\n"

    def _row_start(self, row: int) -> str:
        return f"{row + 1} " if self.row_numbers else ""


ENCODERS = {
    encoder.name: encoder
    for encoder in (
        Encoder("plain"),
        Encoder("separated", separator="|"),
        Encoder("fenced", fence=True),
        Encoder("shape", fence=True, shape=True),
        Encoder("rows", fence=True, row_numbers=True),
        Encoder("shape_rows", fence=True, shape=True, row_numbers=True),
        Encoder("repeated", cells=tuple(3 * d for d in DIGITS), fence=True),
        Encoder("symbols", cells=SYMBOLS, fence=True),
        Encoder("compact", closed=True),
    )
}
assert all(len(encoder.cells) == NUM_COLORS for encoder in ENCODERS.values())


def encoder_named(name: str) -> Encoder:
    """Return the encoder of this name. Raises UserError naming the valid ones."""
    if name not in ENCODERS:
        raise UserError(f"prompt.encoder: there is no {name!r}; choose one of {', '.join(ENCODERS)}")
    return ENCODERS[name]
