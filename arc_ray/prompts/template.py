"""Templates: what a tokenizer makes of a grid of one shape, with the places of its cells; and of the seams between.

Everything constant (fences, row numbers, newlines) is taken from the tokenizer's own output around a real grid. A grid
is cut where every tokenizer that keeps cells apart has a boundary: before the first thing that depends on its shape or
colours, and after its last cell. What stands before and after belongs to the text beside it, with which it may merge:

    Input:\n```grid shape: |3x4\n...cells|\n```\nOutput:\n```grid shape: |2x2\n...
                seam           template                 seam
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from arc_ray.prompts.encoders import Encoder
from arc_ray.tasks.task import NUM_COLORS
from arc_ray.views.augmentation import cell_order

Ids = npt.NDArray[np.int32]


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
    begin, end = encoder.cell_spans(3, 3)[4] + 1
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
    return Template(ids[begin : slots[-1, -1] + 1], (slots - begin).astype(np.int32))


def find_seam(tokenizer: Any, encoder: Encoder, text: str, after_grid: bool, before_grid: bool) -> Ids:
    """Tokenize a text with what ends the grid before it, and what begins the grid after it. Raises CellsMergeError."""
    grid = encoder.render(np.zeros((2, 2), np.uint8))
    end_of_cells = int(encoder.cell_spans(2, 2)[-1, 1])
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
