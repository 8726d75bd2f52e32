"""Prompt formats: a view becomes segments of text and grids, each to be learned or not.

A format's layout depends only on how many pairs are shown, never on the grids: that is why lengths are known from
shapes alone and why token ids can be looked up. What is learned is decided here, not searched for in text afterwards.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from arc_ray.errors import UserError
from arc_ray.tasks.task import Question
from arc_ray.views.augmentation import PairSide

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


class Text(NamedTuple):
    """A piece of text, and whether a grid that is learned alike stands right before or after it: tokens may span both."""

    text: str
    learn: bool = False
    after_grid: bool = False
    before_grid: bool = False


class GridSlot(NamedTuple):
    """A place for a grid: of shown pair `pair`, or of the asked pair where `pair` equals the number shown."""

    pair: int
    side: PairSide
    learn: bool = False


class DescriptionSlot(NamedTuple):
    """A place for the description of the task's rule in words."""

    learn: bool = False


Segment = Text | GridSlot | DescriptionSlot
Layout = tuple[Segment, ...]
Format = Callable[[Frame, int, Learn], Layout]


def output_from_examples(frame: Frame, num_shown: int, learn: Learn) -> Layout:
    """Show pairs, ask for the output of one more input, in a chat turn; words for a general model."""
    return (*_examples(frame, num_shown, learn), *_test(frame, num_shown))


def compact(frame: Frame, num_shown: int, learn: Learn) -> Layout:
    """Show nothing but grids, I before inputs and O before outputs; each output ends with the end token."""
    segments: list[Segment] = [Text(frame.begin)]
    for i in range(num_shown + 1):
        is_learned = i == num_shown or (learn == "all" and i > 0)
        segments += [Text("I"), GridSlot(i, "input"), Text("O"), GridSlot(i, "output", is_learned)]
        segments += [Text(frame.end, is_learned)]
    return tuple(segments)


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
    return (Text(f"{frame.begin}# Rule\n"), DescriptionSlot(), Text("\n"), *_test(frame, num_shown))


FORMATS: dict[str, Format] = {
    make.__name__: make for make in (output_from_examples, compact, input_from_inputs, describe, implement)
}


def needs_description(format: Format) -> bool:
    """Tell whether a format has a place for the description of a task."""
    return any(isinstance(segment, DescriptionSlot) for segment in format(Frame("", "", "", ""), 1, "asked"))


def joined(layout: Layout, description: str | None = None) -> Layout:
    """Put a description in its place, join neighbouring texts that are learned alike, and give every grid a text on
    both sides that is learned as it is, if only an empty one: tokenizers merge what ends a text with what follows."""
    segments: list[Segment] = []

    def add_text(text: str, learn: bool, after_grid: bool = False) -> None:
        if segments and isinstance(last := segments[-1], Text) and last.learn == learn:
            segments[-1] = last._replace(text=last.text + text)
        else:
            segments.append(Text(text, learn, after_grid))

    for segment in layout:
        if isinstance(segment, GridSlot):
            add_text("", segment.learn)
            segments[-1] = segments[-1]._replace(before_grid=True)  # pyright: ignore
            segments.append(segment)
            add_text("", segment.learn, after_grid=True)
        elif isinstance(segment, DescriptionSlot) and description is None:
            segments.append(segment)
        else:
            add_text(description or "" if isinstance(segment, DescriptionSlot) else segment.text, segment.learn)
    return tuple(segments)


def _examples(frame: Frame, num_shown: int, learn: Learn) -> list[Segment]:
    """Begin a turn with what is asked of a general model, and the shown pairs."""
    task = "Each example turns an input grid into an output grid by one and the same rule. Find the rule.\n"
    segments: list[Segment] = [Text(frame.begin + task)]
    for i in range(num_shown):
        segments += [Text(f"\n# Example {i + 1}\nInput:\n"), GridSlot(i, "input"), Text("\nOutput:\n")]
        segments += [GridSlot(i, "output", learn == "all" and i > 0), Text("\n")]
    return segments


def _test(frame: Frame, pair: int) -> list[Segment]:
    """Show the asked input and learn its output."""
    return [
        *(Text("\n# Test\nInput:\n"), GridSlot(pair, "input"), Text("\nApply the rule. Output:\n" + frame.answer)),
        *(GridSlot(pair, "output", True), Text(frame.end, True)),
    ]


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
