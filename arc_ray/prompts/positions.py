"""Which rotary position each token of a view has: its number, or pair, row and column of the cell that it writes.

A position follows from the tokens up to it alone. So rows of many views, prompts, and answers that are written, guessed or
searched for token by token have the same ones, and the model needs no weights for them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from arc_ray.errors import UserError
from arc_ray.prompts.encoders import Encoder, Ids, Template, cells_in_lines
from arc_ray.tasks.task import MAX_SIDE

STEP = 32
"""Distances from a line to the next are a multiple of this."""


TokenKind = Literal["cell", "line_end", "mark", "blank"]
"""Tokens that may begin a line of cells: its first cell, or its number; those after which a line begins; those after which
a grid begins at once, such as the O before an output; and spaces, before which a line may begin as well."""


class Place(NamedTuple):
    """Where a view stands after some of its tokens."""

    position: int = -1
    """Of the last token."""
    grid: int = 0
    """Grids begun."""
    line: int = 0
    """Number of the last line of cells within its grid."""
    is_cells: bool = False
    """Whether the last line is one of cells, so that another would belong to the same grid."""
    is_ended: bool = False
    """Whether a line begins with the next token."""


BEGIN = Place()


@dataclass(frozen=True)
class Positions:
    """A function from tokens to positions; of the view <bos>I01\\n23\\nO4\\n<eos> in encoder compact they are

    <bos>  I    0    1   \\n    2    3   \\n    O    4   \\n <eos>
        0  1 1024 1025 1026 1056 1057 1058 1059 2048 2049  2050
    """

    kinds: Mapping[int, TokenKind]
    """Of tokens; without any, positions count all tokens."""
    lines: tuple[int, ...] = ()
    """Where each line of a grid begins in it, so that cells of a column are as far apart in all grids."""
    step: int = 0
    """From a cell to the same one of the next grid, such as from that of an input to that of its output."""

    def after(self, tokens: Iterable[int], place: Place = BEGIN) -> tuple[list[int], Place]:
        """Return the positions of tokens that follow a place, and the place after them.

        All tokens count up, but the first of a line of cells begins where that line lies. The first token of a view is at
        0, and no other: the first grid begins at `step`.
        """
        position, grid, line, is_cells, is_ended = place
        found = []
        for token in tokens:
            position += 1
            kind = self.kinds.get(token)
            if kind != "blank":
                if is_ended:
                    is_next, is_cells = is_cells, kind == "cell"
                    if is_cells:
                        line, grid = (line + 1, grid) if is_next else (0, grid + 1)
                        position = grid * self.step + self.lines[min(line, len(self.lines) - 1)]
                is_ended = kind in ("line_end", "mark")
                is_cells = is_cells and kind != "mark"
            found.append(position)
        return found, Place(position, grid, line, is_cells, is_ended)

    def of(self, ids: Ids) -> Ids:
        """Return the positions of a view's tokens, int32 (length,)."""
        if not self.kinds:
            return np.arange(len(ids), dtype=np.int32)
        return np.array(self.after(ids.tolist())[0], np.int32)


SEQUENCE = Positions({})


def grid_positions(encoder: Encoder, largest: Template, kinds: Mapping[int, TokenKind]) -> Positions:
    """Lay out the lines of an encoder's grids as they are in `largest`, a whole grid of 30 x 30.

    Raises UserError where lines of cells are no rows or columns, or begin with no token of their own.
    """
    order = cells_in_lines(encoder.traversal, MAX_SIDE, MAX_SIDE)
    if encoder.traversal not in ("rows", "columns"):
        raise no_places(f"encoder {encoder.name} writes no rows or columns")
    number = np.arange(len(largest.ids))
    is_end = np.array([kinds.get(token) == "line_end" for token in largest.ids.tolist()])
    ends_before = np.maximum.accumulate(np.append(-1, np.where(is_end, number, -1)))
    first_cells = largest.slots[order[:, 0], 0]
    # A row's number is written before its first cell, in more tokens from 10 on. What begins the first row varies.
    before = first_cells - 1 - ends_before[first_cells]
    before[0] = before[1]
    step = -(-int(np.diff(first_cells).max()) // STEP) * STEP
    lines = tuple((step * np.arange(MAX_SIDE) + before.max() - before).tolist())
    positions = Positions(kinds, lines, (MAX_SIDE + 2) * step)
    found = np.array(positions.after(largest.ids.tolist(), Place(is_ended=True))[0])[largest.slots[order, 0]]
    if (np.diff(found[1:], axis=0) != step).any():
        raise no_places("this tokenizer gives lines of cells no tokens of their own")
    return positions


def no_places(why: str) -> UserError:
    """Return the error that tells why cells have no place in a grid while it is written."""
    return UserError(f"prompt.positions grid: {why}; set prompt.positions=sequence, or take another prompt.encoder")
