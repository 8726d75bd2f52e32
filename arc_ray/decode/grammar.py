"""`GridGrammar`: which tokens may come next so that the answer is a grid as the encoder writes it, and nothing else.

The encoder's grids are known as templates, one a shape: constant tokens and places for cells. An automaton follows all
templates that agree with what is written: its state is the position, the shapes still possible, and the tokens of a
cell that is only half written (where a cell takes several).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from arc_ray.prompts.codec import Codec
from arc_ray.tasks.task import MAX_SIDE

Shape = tuple[int, int]


class GrammarState(NamedTuple):
    """Where an answer stands."""

    position: int
    shapes: frozenset[Shape]
    cell: tuple[int, ...] = ()
    """Tokens of the cell that is being written."""


ENDED = GrammarState(-1, frozenset())
"""After the end token; nothing may follow."""


class GridGrammar:
    """The answers an encoder can give, as an automaton over a tokenizer's tokens; transitions are found when needed."""

    def __init__(self, codec: Codec) -> None:
        """Look up the templates of all 900 shapes; the codec must be on its fast path."""
        assert codec.is_fast, "cells have no tokens of their own"
        self._end = codec.end_id
        self._cells = [tuple(tokens) for tokens in codec.cell_ids.tolist()]
        self._templates: dict[Shape, tuple[list[int], list[int]]] = {}
        for shape in ((h, w) for h in range(1, MAX_SIDE + 1) for w in range(1, MAX_SIDE + 1)):
            template = codec.whole_grid(*shape)
            phases = np.full(len(template.ids), -1, np.int64)
            phases[template.slots] = np.arange(template.slots.shape[1])
            self._templates[shape] = template.ids.tolist(), phases.tolist()
        self.start = GrammarState(0, frozenset(self._templates))
        self._next: dict[GrammarState, Mapping[int, GrammarState]] = {ENDED: {}}

    def next(self, state: GrammarState) -> Mapping[int, GrammarState]:
        """Return the tokens that may follow, in ascending order, and the state after each; empty after the end token."""
        if state not in self._next:
            self._next[state] = dict(sorted(self._transitions(state).items()))
        return self._next[state]

    def allowed(self, states: Sequence[Sequence[GrammarState]], width: int) -> npt.NDArray[np.int64]:
        """Return the tokens that may follow the states of each row, -1 behind them: (rows, width, most).

        There is none for the places of a row that has fewer than `width` states.
        """
        following = [[self.next(state) for state in row] for row in states]
        most = max(len(tokens) for row in following for tokens in row)
        found = np.full((len(states), width, most), -1, np.int64)
        for i, row in enumerate(following):
            for j, tokens in enumerate(row):
                found[i, j, : len(tokens)] = list(tokens)
        return found

    def _transitions(self, state: GrammarState) -> Mapping[int, GrammarState]:
        constant: dict[int, set[Shape]] = {}
        in_cell: dict[int, set[Shape]] = {}
        for shape in state.shapes:
            ids, phases = self._templates[shape]
            if state.position == len(ids):
                constant.setdefault(self._end, set()).add(shape)
            elif phases[state.position] < 0:
                constant.setdefault(ids[state.position], set()).add(shape)
            else:
                in_cell.setdefault(phases[state.position], set()).add(shape)
        found = {token: GrammarState(state.position + 1, frozenset(shapes)) for token, shapes in constant.items()}
        for phase, shapes in in_cell.items():
            possible = frozenset(shapes)
            for token in {cell[phase] for cell in self._cells if cell[:phase] == state.cell}:
                assert token not in constant, "a token that is a cell's in one shape and something else in another"
                is_half = phase < len(self._cells[0]) - 1
                found[token] = GrammarState(state.position + 1, possible, (*state.cell, token) if is_half else ())
        return {token: ENDED if token == self._end else after for token, after in found.items()}
