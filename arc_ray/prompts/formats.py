"""Prompt formats: a view becomes segments of text and grids, each to be learned or not.

A format's layout depends only on how many pairs are shown, never on the grids: that is why lengths are known from
shapes alone and why token ids can be looked up. What is learned is decided here, not searched for in text afterwards.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from arc_ray.errors import UserError
from arc_ray.tasks.task import Question

Learn = Literal["asked", "all"]


@dataclass(frozen=True)
class Frame:
    """The strings around turns, taken from a model's chat template; for a model without one, the plainest that work."""

    begin: str
    """Before the first user turn's content."""
    answer: str
    """Between a user turn's content and the answer."""
    end: str
    """Ends an answer; the model learns to emit it."""
    between: str
    """Between the end of an answer and the next user turn's content."""


@dataclass(frozen=True)
class Text:
    """A piece of text, and whether a grid that is learned alike stands right before or after it: tokens may span both."""

    text: str
    learn: bool = False
    after_grid: bool = False
    before_grid: bool = False


@dataclass(frozen=True)
class GridSlot:
    """A place for a grid: of shown pair `pair`, or of the asked pair where `pair` equals the number shown."""

    pair: int
    side: Literal["input", "output"]
    learn: bool = False


@dataclass(frozen=True)
class DescriptionSlot:
    """A place for the description of the task's rule in words."""

    learn: bool = False


Segment = Text | GridSlot | DescriptionSlot
Layout = tuple[Segment, ...]
Format = Callable[[Frame, int, Learn], Layout]


def output_from_examples(frame: Frame, num_shown: int, learn: Learn) -> Layout:
    """Show pairs, ask for the output of one more input, in a chat turn; words for a general model."""
    return (
        *_examples(frame, num_shown, learn),
        Text("\n# Test\nInput:\n"),
        GridSlot(num_shown, "input"),
        Text("\nApply the rule. Output:\n" + frame.answer),
        GridSlot(num_shown, "output", True),
        Text(frame.end, True),
    )


def compact(frame: Frame, num_shown: int, learn: Learn) -> Layout:
    """Show nothing but grids, I before inputs and O before outputs; each output ends with the end token."""
    segments: list[Segment] = [Text(frame.begin)]
    for i in range(num_shown):
        is_learned = learn == "all" and i > 0
        segments += [Text("I"), GridSlot(i, "input"), Text("O"), GridSlot(i, "output", is_learned)]
        segments += [Text(frame.end, is_learned)]
    return (
        *segments,
        Text("I"),
        GridSlot(num_shown, "input"),
        Text("O"),
        GridSlot(num_shown, "output", True),
        Text(frame.end, True),
    )


def input_from_inputs(frame: Frame, num_shown: int, learn: Learn) -> Layout:
    """Show inputs only and ask for another grid of the same kind: learns what tasks look like, needs no answer."""
    segments: list[Segment] = [Text(f"{frame.begin}These grids were made by one recipe. Make another one like them.\n")]
    for i in range(num_shown):
        segments += [Text(f"\n# Grid {i + 1}\n"), GridSlot(i, "input", learn == "all" and i > 0), Text("\n")]
    return (*segments, Text(frame.answer), GridSlot(num_shown, "input", True), Text(frame.end, True))


def describe(frame: Frame, num_shown: int, learn: Learn) -> Layout:
    """First player: show pairs, ask for their rule in words. The asked pair is not shown, so it can test the words."""
    return (
        *_examples(frame, num_shown, "asked"),
        Text("\nDescribe the rule in words:\n" + frame.answer),
        DescriptionSlot(True),
        Text(frame.end, True),
    )


def implement(frame: Frame, num_shown: int, learn: Learn) -> Layout:
    """Second player: show a rule in words and an input, no example, and ask for the output."""
    return (
        Text(f"{frame.begin}# Rule\n"),
        DescriptionSlot(),
        Text("\n\n# Test\nInput:\n"),
        GridSlot(num_shown, "input"),
        Text("\nApply the rule. Output:\n" + frame.answer),
        GridSlot(num_shown, "output", True),
        Text(frame.end, True),
    )


FORMATS: dict[str, Format] = {
    "output_from_examples": output_from_examples,
    "compact": compact,
    "input_from_inputs": input_from_inputs,
    "describe": describe,
    "implement": implement,
}


def needs_description(format: Format) -> bool:
    """Tell whether a format has a place for the description of a task."""
    return any(isinstance(segment, DescriptionSlot) for segment in format(Frame("", "", "", ""), 1, "asked"))


def joined(layout: Layout, description: str | None = None) -> Layout:
    """Put a description in its place, join neighbouring texts that are learned alike, and give every grid a text on
    both sides that is learned as it is, if only an empty one: tokenizers merge what ends a text with what follows."""
    segments: list[Segment] = []
    for segment in layout:
        if isinstance(segment, DescriptionSlot) and description is not None:
            segment = Text(description, segment.learn)
        last = segments[-1] if segments else None
        if isinstance(last, GridSlot) and not (isinstance(segment, Text) and segment.learn == last.learn):
            last = Text("", last.learn)
            segments.append(last)
        is_joined = isinstance(last, Text) and last.learn == segment.learn
        if isinstance(segment, Text) and is_joined:
            segment = Text(segments.pop().text + segment.text, segment.learn)  # pyright: ignore
        elif isinstance(segment, GridSlot) and not is_joined:
            segments.append(Text("", segment.learn))
        segments.append(segment)
    if isinstance(segments[-1], GridSlot):
        segments.append(Text("", segments[-1].learn))
    around = zip([None, *segments[:-1]], segments, [*segments[1:], None], strict=True)
    return tuple(
        replace(segment, after_grid=_is_grid(before, segment), before_grid=_is_grid(after, segment))
        if isinstance(segment, Text)
        else segment
        for before, segment, after in around
    )


def _is_grid(neighbour: Segment | None, text: Text) -> bool:
    return isinstance(neighbour, GridSlot) and neighbour.learn == text.learn


def _examples(frame: Frame, num_shown: int, learn: Learn) -> list[Segment]:
    """Begin a turn with what is asked of a general model, and the shown pairs."""
    task = "Each example turns an input grid into an output grid by one and the same rule. Find the rule.\n"
    segments: list[Segment] = [Text(frame.begin + task)]
    for i in range(num_shown):
        segments += [Text(f"\n# Example {i + 1}\nInput:\n"), GridSlot(i, "input"), Text("\nOutput:\n")]
        segments += [GridSlot(i, "output", learn == "all" and i > 0), Text("\n")]
    return segments


def counting_layout(frame: Frame, num_grids: int, questions: Sequence[Question]) -> Layout:
    """Show a task's grids, then ask its questions one turn after another; every answer is learned."""
    segments: list[Segment] = [Text(frame.begin)]
    for i in range(num_grids):
        segments += [Text("Grid:\n" if num_grids == 1 else f"Grid {i + 1}:\n"), GridSlot(i, "input"), Text("\n")]
    for i, question in enumerate(questions):
        # `between` stands alone so that the length of a view does not depend on which question comes first.
        segments += [Text(frame.between)] if i else []
        segments += [Text(f"{question.text}\n{frame.answer}"), Text(question.answer + frame.end, True)]
    return tuple(segments)


def format_named(name: str) -> Format:
    """Return the prompt format of this name. Raises UserError naming the valid ones."""
    if name not in FORMATS:
        raise UserError(f"prompt.format: there is no {name!r}; choose one of {', '.join(FORMATS)}")
    return FORMATS[name]
