"""Views -> token ids and a learn mask. Cells are tokens already: on the fast path ids are looked up, no string is made.

The fast path must give the tokenizer's own ids, so it takes everything constant (text, fences, row numbers) from the
tokenizer's own output around real grids, and `make_codec` compares whole views with the slow path before it is trusted.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from itertools import chain, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from arc_ray.prompts.encoders import Encoder, Ids, Template, find_seam, make_template
from arc_ray.prompts.formats import (
    Format,
    Frame,
    GridSlot,
    Layout,
    Learn,
    Text,
    counting_layout,
    joined,
    needs_description,
)
from arc_ray.prompts.positions import SEQUENCE, Positions
from arc_ray.tasks.task import NUM_COLORS, Grid, TaskTable
from arc_ray.views.augmentation import OneSided, swaps_sides
from arc_ray.views.view import Views, question_order

Mask = npt.NDArray[np.bool_]
_PlacedGrid = tuple[int, int, npt.NDArray[np.int32], npt.NDArray[np.uint8]]
"""Where a grid begins, the number of its view, the slots of its cells, and the cells."""


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
    positions: Positions = SEQUENCE
    _templates: dict[tuple[int, int, int], Template] = field(default_factory=dict)
    _texts: dict[Text, Ids] = field(default_factory=dict)
    """Caches, which `dataclasses.replace` hands on to a codec that learns otherwise."""

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
        has_words = table.is_counting | np.array([text is not None for text in table.descriptions], bool)
        return asks & has_words[views.task]

    def layouts_of(self, table: TaskTable, views: Views) -> list[Layout]:
        """Return the segments of each view: its task's description in its place, counting questions in its own order."""

        @cache
        def of_puzzles(num_shown: int) -> Layout:
            return joined(self.format(self.frame, num_shown, self.learn))

        def layout_of(task: int, num_shown: int, key: np.uint64) -> Layout:
            if table.is_counting[task]:
                questions = table.questions[task]
                asked = [questions[j] for j in question_order(key, len(questions))]
                return joined(counting_layout(self.frame, table.num_pairs[task], asked))
            layout = of_puzzles(num_shown)
            return joined(layout, table.descriptions[task]) if self.needs_description else layout

        return list(map(layout_of, views.task.tolist(), views.num_shown().tolist(), views.key))

    def text_ids(self, text: Text) -> Ids:
        """Tokenize a piece of constant text, once; beside a grid with what every grid ends or begins with.

        Raises CellsMergeError where the text merges with a cell.
        """
        if text not in self._texts:
            self._texts[text] = find_seam(self.tokenizer, self.encoder, text.text, text.after_grid, text.before_grid)
        return self._texts[text]

    def template(self, height: int, width: int, symmetry: int = 0) -> Template:
        """Return what a grid of this shape is between the texts beside it after a symmetry; its slots follow the cells
        before the symmetry.

        Raises CellsMergeError where a token covers more than one cell or a part of one.
        """
        key = (height, width, symmetry)
        if key not in self._templates:
            if symmetry:
                turned = self.template(*((width, height) if swaps_sides(np.array(symmetry)) else (height, width)))
                self._templates[key] = turned.turned(height, width, symmetry)
            else:
                self._templates[key] = make_template(self.tokenizer, self.encoder, self.cell_ids, height, width)
        return self._templates[key]

    def whole_grid(self, height: int, width: int) -> Template:
        """Return the template of a grid that stands alone, as an answer does, with what it begins and ends with."""
        template = self.template(height, width)
        opening, closing = self.text_ids(Text("", before_grid=True)), self.text_ids(Text("", after_grid=True))
        return Template(np.concatenate([opening, template.ids, closing]), template.slots + len(opening))

    def text_length_bound(self, side: int) -> int:
        """Return a bound on the tokens of an answer no larger than side x side, its end included."""
        return len(self.encoder.render(np.zeros((side, side), np.uint8))) * self.cell_ids.shape[1] + 16

    @property
    def end_id(self) -> int:
        """The first token of what ends an answer."""
        return int(self.text_ids(Text(self.frame.end))[0])

    def answer_ids(self, grid: Grid) -> Ids:
        """Return the ids of a grid as an answer, up to the first token of its end: what generation would write."""
        if self.is_fast:
            template = self.whole_grid(*grid.shape)
            ids = template.ids
            ids[template.slots] = self.cell_ids[grid.ravel()]
        else:
            ids = self.tokenizer(self.encoder.render(grid), add_special_tokens=False)["input_ids"]
        return np.append(ids, self.end_id).astype(np.int32)

    def answer_cells(self, grid: Grid) -> Mask:
        """Tell which tokens of an answer, a grid with its end, are cells, wholly or in part."""
        if self.is_fast:
            template = self.whole_grid(*grid.shape)
            is_cell = np.zeros(len(template.ids) + len(self.text_ids(Text(self.frame.end))), bool)
            is_cell[template.slots] = True
            return is_cell
        text = self.encoder.render(grid) + self.frame.end
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        begin, end = np.array(encoded["offset_mapping"]).T
        is_cell = np.zeros(len(text) + 1, bool)
        for first, last in self.encoder.cell_spans(*grid.shape):
            is_cell[first + 1 : last + 1] = True
        before = np.cumsum(is_cell)
        return before[end] > before[begin]

    def encode(self, table: TaskTable, views: Views) -> list[tuple[Ids, Mask]]:
        """Write views as (ids, learned) pairs: int32 (length,) and bool (length,)."""
        return self._write(table, views, self.layouts_of(table, views)) if len(views) else []

    def prompt_ids(self, table: TaskTable, views: Views, i: int) -> Ids:
        """Return the ids of view `i` up to its last answer: what generation is given; the answer need not be known."""
        view = views.take(slice(i, i + 1))
        [layout] = self.layouts_of(table, view)
        while layout[-1].learn:
            layout = layout[:-1]
        return self._write(table, view, [layout])[0][0]

    def text(self, table: TaskTable, views: Views, i: int) -> list[tuple[str, bool]]:
        """Write view `i` as pieces of text with their learn flags; neighbours that agree are joined."""
        view = views.take(slice(i, i + 1))
        return self._pieces(table, view, *self.layouts_of(table, view))

    def _write(self, table: TaskTable, views: Views, layouts: Sequence[Layout]) -> list[tuple[Ids, Mask]]:
        return self.look_up(table, views, layouts) if self.is_fast else self.tokenize(table, views, layouts)

    def look_up(self, table: TaskTable, views: Views, layouts: Sequence[Layout]) -> list[tuple[Ids, Mask]]:
        """Lay constant ids end to end, then put the cells of all grids of all views into their places at once."""
        parts, learned, ends, grids = self._lay_out(table, views, layouts)
        ids, mask = np.concatenate(parts), np.repeat(learned, [len(part) for part in parts])
        if grids:
            begins, owners, slots, cells = zip(*grids, strict=True)
            sizes = [len(part) for part in cells]
            places = np.concatenate(slots)
            places += np.repeat(np.array(begins, np.int32), sizes)[:, None]
            colors = np.repeat(np.array(owners, np.int32) * NUM_COLORS, sizes)
            colors += np.concatenate(cells)
            luts = self.cell_ids[views.colors].reshape(-1, places.shape[1])
            ids[places.ravel()] = luts.take(colors, axis=0).ravel()
        return [(ids[a:b], mask[a:b]) for a, b in pairwise(ends)]

    def _lay_out(
        self, table: TaskTable, views: Views, layouts: Sequence[Layout]
    ) -> tuple[list[Ids], list[bool], list[int], list[_PlacedGrid]]:
        """Return the constant ids of all segments of all views, which are learned, where views end, and the grids."""
        pairs = _pairs(table, views)
        first = np.cumsum([0, *(2 * len(numbers) for numbers in pairs)]).tolist()
        index = (2 * np.fromiter(chain(*pairs), np.int64)[:, None] + np.arange(2)).ravel()
        heights, widths, starts = (column[index].tolist() for column in (table.height, table.width, table.start))
        changes = [None] * len(views) if views.one_sided is None else list(map(OneSided.from_code, views.one_sided))
        parts: list[Ids] = []
        learned: list[bool] = []
        grids: list[_PlacedGrid] = []
        ends, end = [0], 0
        # Looked into here: a call for each segment would be a tenth of all time.
        texts, templates = self._texts, self._templates
        columns = zip(layouts, views.symmetry.tolist(), changes, strict=True)
        for i, (layout, symmetry, change) in enumerate(columns):
            for segment in layout:
                if type(segment) is GridSlot:
                    at = first[i] + 2 * segment.pair + (segment.side == "output")
                    height, width = heights[at], widths[at]
                    cells = table.cells[starts[at] : starts[at] + height * width]
                    if change and change.side == segment.side:
                        changed = change.apply(cells.reshape(height, width))
                        (height, width), cells = changed.shape, changed.ravel()
                    template = templates.get((height, width, symmetry)) or self.template(height, width, symmetry)
                    ids = template.ids
                    grids.append((end, i, template.slots, cells))
                else:
                    assert type(segment) is Text
                    ids = texts.get(segment)
                    if ids is None:
                        ids = self.text_ids(segment)
                parts.append(ids)
                learned.append(segment.learn)
                end += len(ids)
            ends.append(end)
        return parts, learned, ends, grids

    def tokenize(self, table: TaskTable, views: Views, layouts: Sequence[Layout]) -> list[tuple[Ids, Mask]]:
        """Send all texts through the tokenizer in one call, which a fast tokenizer shares among the machine's cores."""
        pieces = [self._pieces(table, views.take(slice(i, i + 1)), layout) for i, layout in enumerate(layouts)]
        ids = iter(self.tokenizer([text for text, _ in chain(*pieces)], add_special_tokens=False)["input_ids"])
        written = []
        for texts in pieces:
            parts = [np.array(next(ids), np.int32) for _ in texts]
            mask = np.repeat([learn for _, learn in texts], [len(part) for part in parts])
            written.append((np.concatenate(parts), mask))
        return written

    def _pieces(self, table: TaskTable, view: Views, layout: Layout) -> list[tuple[str, bool]]:
        [pairs], augmentation = _pairs(table, view), view.augmentation(0)
        pieces: list[tuple[str, bool]] = []
        for segment in layout:
            if isinstance(segment, GridSlot):
                grid = table.grid(2 * pairs[segment.pair] + (segment.side == "output"))
                text = self.encoder.render(augmentation.apply(grid, segment.side))
            else:
                assert isinstance(segment, Text)
                text = segment.text
            if pieces and pieces[-1][1] == segment.learn:
                text = pieces.pop()[0] + text
            pieces.append((text, segment.learn))
        return pieces


def _pairs(table: TaskTable, views: Views) -> list[list[int]]:
    """List the pairs that the grid slots of each view refer to: shown ones, then the asked one; of counting tasks all."""
    columns = zip(views.task.tolist(), views.shown.tolist(), views.asked.tolist(), strict=True)
    return [
        list(range(table.first_pair[task], table.first_pair[task + 1]))
        if table.is_counting[task]
        else [*(pair for pair in shown if pair >= 0), asked]
        for task, shown, asked in columns
    ]
