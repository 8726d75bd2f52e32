"""Templates: what a tokenizer makes of a grid of one shape, with the places of its cells.

Everything constant (fences, row numbers, newlines) is taken from the tokenizer's own output around a real grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from arc_ray.augment import cell_order
from arc_ray.encoders import Encoder
from arc_ray.tasks import NUM_COLORS

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
    found: list[Sequence[int]] = []
    for color in range(NUM_COLORS):
        text = "\n" + encoder.render(np.full((3, 3), color, np.uint8)) + "\n"
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        begin, end = encoder.cell_spans(3, 3)[4] + 1
        inside = [
            t
            for t, (a, b) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
            if a >= begin and b <= end
        ]
        found.append(inside)
    if len({len(ids) for ids in found}) != 1 or not found[0]:
        raise CellsMergeError("cells have no tokens of their own, or colours differ in their number")
    return np.array(found, np.int32)


def make_template(tokenizer: Any, encoder: Encoder, cell_ids: Ids, height: int, width: int) -> Template:
    """Tokenize a grid of this shape and find its cells. Raises CellsMergeError where they have no tokens of their own."""
    colors = (np.arange(height * width, dtype=np.uint8) % NUM_COLORS).reshape(height, width)
    # The grid stands in the middle of a text, as in every format, so that a tokenizer which treats the beginning
    # in its own way (sentencepiece's added space) shows what it does elsewhere.
    text = "\n" + encoder.render(colors) + ("O" if encoder.closed else "\n")
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = np.array(encoded["input_ids"], np.int32), np.array(encoded["offset_mapping"], np.int32)
    spans = encoder.cell_spans(height, width) + 1
    first = np.searchsorted(offsets[:, 0], spans[:, 0])
    slots = first[:, None] + np.arange(cell_ids.shape[1])[None, :]
    inside = slots.max(initial=0) < len(ids)
    if (
        not inside
        or not (offsets[slots[:, 0], 0] == spans[:, 0]).all()
        or not (offsets[slots[:, -1], 1] == spans[:, 1]).all()
    ):
        raise CellsMergeError(f"a {height}x{width} grid does not tokenize cell by cell")
    if not (ids[slots] == cell_ids[colors.ravel()]).all():
        raise CellsMergeError(f"in a {height}x{width} grid a colour's token depends on its neighbours")
    begin = int(np.searchsorted(offsets[:, 0], 1))
    end = int(np.searchsorted(offsets[:, 1], len(text) - 1, side="right"))
    if not (offsets[begin, 0] == 1 and offsets[end - 1, 1] == len(text) - 1):
        raise CellsMergeError(f"the tokenizer merges a {height}x{width} grid with the text around it")
    return Template(ids[begin:end], (slots - begin).astype(np.int32))
