"""Views -> token ids and a learn mask. Cells are tokens already: on the fast path ids are looked up, no string is made.

The fast path must give the tokenizer's own ids, so it takes everything constant (text, fences, row numbers) from the
tokenizer's own output around real grids, and `make_codec` compares whole views with the slow path before it is trusted.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from arc_ray.augment import Augmentation, cell_order, swaps_sides
from arc_ray.encoders import Encoder
from arc_ray.prompt import (
    Format,
    Frame,
    GridSlot,
    Layout,
    Learn,
    Text,
    counting_layout,
    needs_description,
    with_description,
)
from arc_ray.tasks import NUM_COLORS, TaskTable
from arc_ray.tokens.sample import sample_views
from arc_ray.views import Views, question_order

Ids = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]


class CellsMergeError(Exception):
    """The tokenizer does not give every cell tokens of its own; the slow path must be used."""


@dataclass(frozen=True)
class Template:
    """Token ids of a grid of one shape with the places of its cells."""

    ids: Ids
    slots: npt.NDArray[np.int32]
    """Where each cell's tokens go in `ids`: (height * width, tokens per cell)."""


@dataclass
class Codec:
    """Writes views as token ids for one tokenizer, encoder and prompt format. Grows caches; give each process its own."""

    tokenizer: Any
    """A fast Hugging Face tokenizer."""
    frame: Frame
    encoder: Encoder
    format: Format
    learn: Learn
    is_fast: bool = True
    """Whether ids are looked up; false sends every view through the tokenizer."""
    cell_ids: Ids = field(default_factory=lambda: np.zeros((NUM_COLORS, 1), np.int32))
    """Tokens of each colour: (10, tokens per cell)."""
    _templates: dict[tuple[int, int], Template] = field(default_factory=dict)
    _texts: dict[str, Ids] = field(default_factory=dict)
    _layouts: dict[tuple[Learn, int], Layout] = field(default_factory=dict)
    """Caches, keyed by all they depend on, because `dataclasses.replace` hands them on to a codec that learns otherwise."""

    def without_tokenizer(self) -> "Codec":
        """Return a codec for other processes: on the fast path what planning has looked up is enough, and loading
        transformers in every data task (seconds) is not; the slow path keeps its tokenizer."""
        return replace(self, tokenizer=None) if self.is_fast else self

    @cached_property
    def needs_description(self) -> bool:
        """Whether the format has a place for a task's description."""
        return needs_description(self.format)

    def can_write(self, table: TaskTable, views: Views) -> Mask:
        """Tell which views ask for something, and have the description that the format needs: bool (n,)."""
        asks = views.asked >= 0
        if not self.needs_description:
            return asks
        has_words = [bool(q) or d is not None for q, d in zip(table.questions, table.descriptions, strict=True)]
        return asks & np.array(has_words, bool)[views.task]

    def puzzle_layout(self, table: TaskTable, task: int, num_shown: int) -> Layout:
        """Return the segments of a view of a puzzle that shows so many pairs, the task's description in its place."""
        layout = self.layout(num_shown)
        if not self.needs_description:
            return layout
        description = table.descriptions[task]
        assert description is not None, f"{table.ids[task]} has no description; see can_write"
        return with_description(layout, description)

    def layout(self, num_shown: int) -> Layout:
        """Return the segments that views of puzzles with so many shown pairs have in common."""
        key = (self.learn, num_shown)
        if key not in self._layouts:
            self._layouts[key] = self.format(self.frame, num_shown, self.learn)
        return self._layouts[key]

    def text_ids(self, text: str) -> Ids:
        """Tokenize a piece of constant text, once."""
        if text not in self._texts:
            self._texts[text] = np.array(self.tokenizer(text, add_special_tokens=False)["input_ids"], np.int32)
        return self._texts[text]

    def template(self, height: int, width: int) -> Template:
        """Return the template of a shape. Raises CellsMergeError where a token covers more than one cell or a part of one."""
        if (height, width) not in self._templates:
            self._templates[height, width] = self._make_template(height, width)
        return self._templates[height, width]

    def grid_length(self, height: int, width: int) -> int:
        """Return the number of tokens of a grid of this shape."""
        return len(self.template(height, width).ids)

    def text_length_bound(self, side: int) -> int:
        """Return a bound on the tokens of an answer no larger than side x side, its end included."""
        return len(self.encoder.render(np.zeros((side, side), np.uint8))) * self.cell_ids.shape[1] + 16

    def grid_ids(self, cells: npt.NDArray[np.uint8], height: int, width: int, symmetry: int, lut: Ids) -> Ids:
        """Return the ids of a grid after a symmetry; `lut` maps its colours to their tokens, (10, tokens per cell)."""
        turned = (width, height) if swaps_sides(np.array(symmetry)) else (height, width)
        template = self.template(*turned)
        ids = template.ids.copy()
        ids[template.slots] = lut[cells[cell_order(height, width, symmetry)]]
        return ids

    def encode(self, table: TaskTable, views: Views) -> list[tuple[Ids, Mask]]:
        """Write views as (ids, learned) pairs: int32 (length,) and bool (length,)."""
        one = self._encode_fast if self.is_fast else self._encode_slow
        return [one(table, views, i) for i in range(len(views))]

    def view_layout(self, table: TaskTable, views: Views, i: int) -> Layout:
        """Return the segments of view `i`, counting questions in the view's own order."""
        questions = table.questions[views.task[i]] if table.questions else ()
        if not questions:
            return self.puzzle_layout(table, int(views.task[i]), int((views.shown[i] >= 0).sum()))
        order = question_order(views.key[i], len(questions))
        num_grids = int(table.first_pair[views.task[i] + 1] - table.first_pair[views.task[i]])
        return counting_layout(self.frame, num_grids, [questions[j] for j in order])

    def view_pairs(self, table: TaskTable, views: Views, i: int) -> list[int]:
        """Return the pairs that the grid slots of view `i` refer to: shown ones, then the asked one."""
        if table.questions and table.questions[views.task[i]]:
            return list(range(table.first_pair[views.task[i]], table.first_pair[views.task[i] + 1]))
        return [int(p) for p in views.shown[i] if p >= 0] + [int(views.asked[i])]

    def prompt_ids(self, table: TaskTable, views: Views, i: int) -> Ids:
        """Return the ids of view `i` up to its last answer: what generation is given; the answer need not be known."""
        layout = self.view_layout(table, views, i)
        while layout[-1].learn:
            layout = layout[:-1]
        write = self._look_up if self.is_fast else self._tokenize
        return write(table, views, i, layout)[0]

    def text(self, table: TaskTable, views: Views, i: int) -> list[tuple[str, bool]]:
        """Write view `i` as pieces of text with their learn flags; neighbours that agree are joined."""
        return self._pieces(table, views, i, self.view_layout(table, views, i))

    def _encode_fast(self, table: TaskTable, views: Views, i: int) -> tuple[Ids, Mask]:
        return self._look_up(table, views, i, self.view_layout(table, views, i))

    def _look_up(self, table: TaskTable, views: Views, i: int, layout: Layout) -> tuple[Ids, Mask]:
        pairs = self.view_pairs(table, views, i)
        symmetry, lut = int(views.symmetry[i]), self.cell_ids[views.colors[i]]
        parts, learned = [], []
        for segment in layout:
            if isinstance(segment, Text):
                ids = self.text_ids(segment.text)
            else:
                assert isinstance(segment, GridSlot)
                grid = 2 * pairs[segment.pair] + (segment.side == "output")
                cells = table.cells[table.start[grid] : table.start[grid + 1]]
                ids = self.grid_ids(cells, int(table.height[grid]), int(table.width[grid]), symmetry, lut)
            parts.append(ids)
            learned.append(segment.learn)
        mask = np.repeat(learned, [len(part) for part in parts])
        return np.concatenate(parts), mask

    def _encode_slow(self, table: TaskTable, views: Views, i: int) -> tuple[Ids, Mask]:
        return self._tokenize(table, views, i, self.view_layout(table, views, i))

    def _tokenize(self, table: TaskTable, views: Views, i: int, layout: Layout) -> tuple[Ids, Mask]:
        pieces = self._pieces(table, views, i, layout)
        parts = [np.array(self.tokenizer(text, add_special_tokens=False)["input_ids"], np.int32) for text, _ in pieces]
        return np.concatenate(parts), np.repeat([learn for _, learn in pieces], [len(part) for part in parts])

    def _pieces(self, table: TaskTable, views: Views, i: int, layout: Layout) -> list[tuple[str, bool]]:
        pairs = self.view_pairs(table, views, i)
        augmentation = Augmentation(int(views.symmetry[i]), tuple(int(c) for c in views.colors[i]))
        pieces: list[tuple[str, bool]] = []
        for segment in layout:
            if isinstance(segment, GridSlot):
                grid = table.grid(2 * pairs[segment.pair] + (segment.side == "output"))
                text = self.encoder.render(augmentation.apply(grid))
            else:
                assert isinstance(segment, Text)
                text = segment.text
            if pieces and pieces[-1][1] == segment.learn:
                text = pieces.pop()[0] + text
            pieces.append((text, segment.learn))
        return pieces

    def _make_template(self, height: int, width: int) -> Template:
        colors = (np.arange(height * width, dtype=np.uint8) % NUM_COLORS).reshape(height, width)
        # The grid stands in the middle of a text, as in every format, so that a tokenizer which treats the beginning
        # in its own way (sentencepiece's added space) shows what it does elsewhere.
        text = "\n" + self.encoder.render(colors) + ("O" if self.encoder.closed else "\n")
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = np.array(encoded["input_ids"], np.int32), np.array(encoded["offset_mapping"], np.int32)
        spans = self.encoder.cell_spans(height, width) + 1
        first = np.searchsorted(offsets[:, 0], spans[:, 0])
        size = self.cell_ids.shape[1]
        slots = first[:, None] + np.arange(size)[None, :]
        inside = slots.max(initial=0) < len(ids)
        if (
            not inside
            or not (offsets[slots[:, 0], 0] == spans[:, 0]).all()
            or not (offsets[slots[:, -1], 1] == spans[:, 1]).all()
        ):
            raise CellsMergeError(f"a {height}x{width} grid does not tokenize cell by cell")
        if not (ids[slots] == self.cell_ids[colors.ravel()]).all():
            raise CellsMergeError(f"in a {height}x{width} grid a colour's token depends on its neighbours")
        begin = int(np.searchsorted(offsets[:, 0], 1))
        end = int(np.searchsorted(offsets[:, 1], len(text) - 1, side="right"))
        if not (offsets[begin, 0] == 1 and offsets[end - 1, 1] == len(text) - 1):
            raise CellsMergeError(f"the tokenizer merges a {height}x{width} grid with the text around it")
        return Template(ids[begin:end], (slots - begin).astype(np.int32))


def make_codec(tokenizer: Any, frame: Frame, encoder: Encoder, format: Format, learn: Learn) -> Codec:
    """Make a codec, on the fast path if that gives the tokenizer's own ids on a sample of views, else on the slow one.

    The slow path is correct for every tokenizer and 20 times slower; taking it is warned about once.
    """
    codec = Codec(tokenizer, frame, encoder, format, learn)
    try:
        codec.cell_ids = _cell_ids(tokenizer, encoder)
        table, views = sample_views()
        for i in range(len(views)):
            fast, slow = codec._encode_fast(table, views, i), codec._encode_slow(table, views, i)
            if not (np.array_equal(fast[0], slow[0]) and np.array_equal(fast[1], slow[1])):
                raise CellsMergeError("looked-up ids differ from the tokenizer's own")
    except CellsMergeError as error:
        warnings.warn(
            f"{type(tokenizer).__name__} with encoder {encoder.name!r}: {error}; every view goes through the tokenizer,"
            f" which is about 20 times slower",
            stacklevel=2,
        )
        codec.is_fast = False
    return codec


def _cell_ids(tokenizer: Any, encoder: Encoder) -> Ids:
    """Find each colour's tokens in the middle of a row of it."""
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
