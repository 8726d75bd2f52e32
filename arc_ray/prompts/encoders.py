"""How a grid is written as text and read back, and what a tokenizer makes of that text.

A tokenizer that keeps cells apart gives each its own tokens, and everything constant (fences, row numbers, newlines) is
taken from its output around a real grid. A grid is cut where every such tokenizer has a boundary: before the first thing
that depends on its shape or colours, and after its last cell. What stands before and after belongs to the text beside it,
with which it may merge:

    Input:\n```grid shape: |3x4\n...cells|\n```\nOutput:\n```grid shape: |2x2\n...
                seam           template                 seam
"""

import re
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from arc_ray.errors import UserError
from arc_ray.tasks.task import MAX_SIDE, NUM_COLORS, Grid
from arc_ray.views.augmentation import cell_order

Ids = npt.NDArray[np.int32]

NoGrid = Literal[
    "empty", "bad_cell", "ragged", "too_large", "no_fence", "bad_row_number", "bad_shape_line", "shape_differs"
]
"""Why a text is no grid."""

DIGITS = tuple("0123456789")
TRAVERSALS = ("rows", "columns", "snake", "spiral")
"""Orders in which cells are written: row by row, column by column, every other row backwards, or around from the top left
corner to the middle, in lines as long as rows."""
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
    traversal: str = "rows"
    """Which cells the rows of the text hold."""

    def render(self, grid: Grid) -> str:
        """Write a grid (uint8, (h, w)) as text."""
        written = grid.ravel()[cells_in_lines(self.traversal, *grid.shape)]
        lines = (self.separator.join([self.cells[c] for c in row]) for row in written.tolist())
        text = "\n".join(self._row_start(i) + line for i, line in enumerate(lines))
        return self._head(*grid.shape) + text + "\n" * self.closed + "\n```" * self.fence

    def cell_spans(self, height: int, width: int) -> npt.NDArray[np.int32]:
        """Return where each cell's text begins and ends in the rendered text: int32 (height * width, 2), in characters.

        Cells are in the grid's own order. All colours' texts are of one length, so the spans depend on the shape alone.
        """
        order = cells_in_lines(self.traversal, height, width)
        lines, length = order.shape
        size, step = len(self.cells[0]), len(self.cells[0]) + len(self.separator)
        starts = np.array([len(self._row_start(line)) for line in range(lines)])
        line_lengths = starts + length * step - len(self.separator) + 1
        begins = len(self._head(height, width)) + starts + np.cumsum(line_lengths) - line_lengths
        spans = np.empty((order.size, 2), np.int32)
        spans[order] = (begins[:, None] + step * np.arange(length))[..., None] + [0, size]
        return spans

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
        shape = (len(rows[0]), len(rows)) if self.traversal == "columns" else (len(rows), len(rows[0]))
        grid = np.empty(shape, np.uint8)
        grid.ravel()[cells_in_lines(self.traversal, *shape)] = rows
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
    """Return the encoder of this name, perhaps with the name of a traversal behind it, such as compact-snake. Raises
    UserError naming the valid ones."""
    base, dash, traversal = name.partition("-")
    if base not in ENCODERS or traversal not in (TRAVERSALS[1:] if dash else ("",)):
        raise UserError(
            f"prompt.encoder: there is no {name!r}; choose one of {', '.join(ENCODERS)}, as it is or with"
            f" {' or '.join(f'-{order}' for order in TRAVERSALS[1:])} behind it"
        )
    return replace(ENCODERS[base], name=name, traversal=traversal or "rows")


@cache
def cells_in_lines(traversal: str, height: int, width: int) -> npt.NDArray[np.int64]:
    """Return the places in `grid.ravel()` of the cells in the lines of a grid's text: (lines, cells of a line).

    cells_in_lines("snake", 2, 3)   -> [[0, 1, 2], [5, 4, 3]]
    cells_in_lines("spiral", 3, 3)  -> [[0, 1, 2], [5, 8, 7], [6, 3, 4]]
    """
    cells = np.arange(height * width).reshape(height, width)
    match traversal:
        case "columns":
            return cells.T
        case "snake":
            cells[1::2] = cells[1::2, ::-1].copy()
        case "spiral":
            sides, inner = [], cells
            while inner.size:
                sides.append(inner[0])
                inner = np.rot90(inner[1:])
            return np.concatenate(sides).reshape(height, width)
    return cells


class CellsMergeError(Exception):
    """The tokenizer does not give every cell tokens of its own; the slow path must be used."""


@dataclass(frozen=True, eq=False)
class Template:
    """Token ids of a grid of one shape with the places of its cells."""

    ids: Ids
    slots: npt.NDArray[np.int32]
    """Where each cell's tokens go in `ids`: (height * width, tokens per cell)."""

    def turned(self, height: int, width: int, symmetry: int) -> "Template":
        """Return the template of a height x width grid after a symmetry, of whose result this is the template.

        Its slots are in the order of the cells before the symmetry, so that no grid has to be turned.
        """
        slots = np.empty_like(self.slots)
        slots[cell_order(height, width, symmetry)] = self.slots
        return Template(self.ids, slots)


def find_cell_ids(tokenizer: Any, encoder: Encoder) -> Ids:
    """Find each colour's tokens in the middle of a row of it: (10, tokens per cell). Raises CellsMergeError."""
    found: list[Ids] = []
    begin, end = np.sort(encoder.cell_spans(3, 3), axis=0)[4] + 1
    for color in range(NUM_COLORS):
        ids, offsets = _tokenize(tokenizer, "\n" + encoder.render(np.full((3, 3), color, np.uint8)) + "\n")
        found.append(ids[(offsets[:, 0] >= begin) & (offsets[:, 1] <= end)])
    if len({len(ids) for ids in found}) != 1 or not len(found[0]):
        raise CellsMergeError("cells have no tokens of their own, or colours differ in their number")
    return np.array(found, np.int32)


def make_template(tokenizer: Any, encoder: Encoder, cell_ids: Ids, height: int, width: int) -> Template:
    """Tokenize a grid of this shape, from where it depends on shape or colours to its last cell, and find its cells.

    Raises CellsMergeError where they have no tokens of their own.
    """
    colors = (np.arange(height * width, dtype=np.uint8) % NUM_COLORS).reshape(height, width)
    # The grid stands in the middle of a text, as in every format, so that a tokenizer which treats the beginning
    # in its own way (sentencepiece's added space) shows what it does elsewhere.
    text = "\n" + encoder.render(colors) + ("O" if encoder.closed else "\n")
    ids, offsets = _tokenize(tokenizer, text)
    spans = encoder.cell_spans(height, width) + 1
    first = np.searchsorted(offsets[:, 0], spans[:, 0])
    slots = first[:, None] + np.arange(cell_ids.shape[1])[None, :]
    is_inside = slots.max(initial=0) < len(ids)
    if not is_inside or (np.stack([offsets[slots[:, 0], 0], offsets[slots[:, -1], 1]], 1) != spans).any():
        raise CellsMergeError(f"a {height}x{width} grid does not tokenize cell by cell")
    if (ids[slots] != cell_ids[colors.ravel()]).any():
        raise CellsMergeError(f"in a {height}x{width} grid a colour's token depends on its neighbours")
    begin = _token_at(offsets, 1 + len(encoder.opening))
    return Template(ids[begin : slots.max() + 1], (slots - begin).astype(np.int32))


def find_seam(tokenizer: Any, encoder: Encoder, text: str, after_grid: bool, before_grid: bool) -> Ids:
    """Tokenize a text with what ends the grid before it, and what begins the grid after it. Raises CellsMergeError."""
    grid = encoder.render(np.zeros((2, 2), np.uint8))
    end_of_cells = int(encoder.cell_spans(2, 2).max())
    ids, offsets = _tokenize(tokenizer, grid * after_grid + text + grid * before_grid)
    begin, end = 0, len(ids)
    if after_grid:
        begin = int(np.searchsorted(offsets[:, 1], end_of_cells, side="right"))
        if not begin or offsets[begin - 1, 1] != end_of_cells:
            raise CellsMergeError(f"the last cell of a grid merges with what follows: {text[:40]!r}")
    if before_grid:
        # Counted from the end: where a space is added to a text's beginning, its token has the first cell's offsets.
        alone, offsets_alone = _tokenize(tokenizer, "\n" + grid)
        tail = alone[_token_at(offsets_alone, 1 + len(encoder.opening)) :]
        end -= len(tail)
        if not (ids[end:] == tail).all():
            raise CellsMergeError(f"the beginning of a grid depends on what stands before it: {text[-40:]!r}")
    return ids[begin:end]


def _tokenize(tokenizer: Any, text: str) -> tuple[Ids, Ids]:
    """Return the ids of a text, (tokens,), and where each begins and ends in it, (tokens, 2)."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return np.array(encoded["input_ids"], np.int32), np.array(encoded["offset_mapping"], np.int32).reshape(-1, 2)


def _token_at(offsets: Ids, position: int) -> int:
    """Return the number of the token that begins at this character. Raises CellsMergeError if there is none."""
    found = np.flatnonzero(offsets[:, 0] == position)
    if not len(found):
        raise CellsMergeError("the tokenizer merges what begins a grid with what follows")
    return int(found[0])
