"""Prompt formats: what is shown, asked and learned, word for word as checkpoints have learned it."""

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from builders import codec_of, smollm_like_tokenizer, tiny_tokenizer

from arc_ray.errors import UserError
from arc_ray.prompts.formats import (
    FORMATS,
    DescriptionSlot,
    Frame,
    GridSlot,
    Learn,
    Text,
    counting_layout,
    describe,
    format_named,
    implement,
    joined,
    needs_description,
)
from arc_ray.tasks.task import Pair, Question, Task, TaskTable
from arc_ray.views.view import plain_views

GOLDEN = Path(__file__).parent / "golden"
FRAME = Frame("<begin>", "<answer>", "<end>", "<between>")
GRID_FORMATS = [name for name, format in FORMATS.items() if not needs_description(format)]


def compare_with_golden(name: str, text: str) -> None:
    """Compare with a file of `golden/`; `WRITE_GOLDEN=1 pytest ...` writes it, for a change that is meant."""
    path = GOLDEN / name
    if os.environ.get("WRITE_GOLDEN"):
        path.write_text(text)
    assert path.read_text() == text


def example() -> TaskTable:
    """Two shown pairs and one to answer, of three shapes."""
    grids = [
        np.arange(h * w, dtype=np.uint8).reshape(h, w) % 10 for h, w in ((2, 3), (3, 2), (1, 2), (2, 1), (2, 2), (1, 1))
    ]
    pairs = [Pair(grids[i], grids[i + 1]) for i in (0, 2, 4)]
    return TaskTable.of([Task("example", tuple(pairs[:2]), (pairs[2],), description="Turn it. Count on.")])


def marked(pieces: list[tuple[str, bool]]) -> str:
    """Text with what is learned between « and »."""
    return "".join(f"«{text}»" if learn else text for text, learn in pieces) + "\n"


@pytest.mark.parametrize("encoder", ["shape_rows", "compact"])
@pytest.mark.parametrize("format", FORMATS)
def test_prompts_are_word_for_word_those_that_checkpoints_learned(format: str, encoder: str):
    """Would catch any change of wording, after which every checkpoint there is answers another prompt."""
    table, text = example(), ""
    for tokenizer in (tiny_tokenizer(), smollm_like_tokenizer()):
        for learn in ("asked", "all"):
            codec = codec_of(tokenizer, encoder, format, learn, quiet=True)
            text += f"===== {learn} =====\n" + marked(codec.text(table, plain_views(table, 4), 0))
    compare_with_golden(f"{format}-{encoder}.txt", text)


def test_counting_prompts_are_word_for_word_the_same():
    grid = np.arange(6, dtype=np.uint8).reshape(2, 3)
    questions = tuple(Question("kind", f"Question {i}?", f"answer {i}") for i in range(4))
    table = TaskTable.of([Task("counting", (), (Pair(grid, None),), questions)])
    codec = codec_of(smollm_like_tokenizer())
    compare_with_golden("counting.txt", marked(codec.text(table, plain_views(table, 4), 0)))


def test_token_ids_are_those_that_models_were_trained_on():
    """Would catch a tiny tokenizer that is trained otherwise, which makes every model from scratch useless."""
    table = example()
    lines = []
    for encoder in ("shape_rows", "compact"):
        ids, learned = codec_of(tiny_tokenizer(), encoder, "output_from_examples").encode(table, plain_views(table, 4))[
            0
        ]
        lines += [encoder, " ".join(map(str, ids)), "".join("#" if x else "." for x in learned)]
    compare_with_golden("token_ids.txt", "\n".join(lines) + "\n")


@pytest.mark.parametrize("format", GRID_FORMATS)
@pytest.mark.parametrize("learn", ["asked", "all"])
@pytest.mark.parametrize("num_shown", [0, 1, 2, 5])
def test_every_format_shows_and_learns_what_it_should(format: str, num_shown: int, learn: Learn):
    """Would catch an answer that stands in its own prompt, a target that is not learned, an end that is never taught."""
    layout = FORMATS[format](FRAME, num_shown, learn)
    slots = [segment for segment in layout if isinstance(segment, GridSlot)]
    side = "input" if format == "input_from_inputs" else "output"
    targets = [slot.pair for slot in slots if slot.learn]
    assert {slot.side for slot in slots if slot.learn} == {side}
    assert targets == (list(range(1, num_shown + 1)) if learn == "all" and num_shown else [num_shown])
    assert layout[-2] == GridSlot(num_shown, side, True)
    assert layout[-1] == Text("<end>", True)
    per_pair = ("input",) if side == "input" else ("input", "output")
    assert [(slot.pair, slot.side) for slot in slots] == [(p, s) for p in range(num_shown + 1) for s in per_pair]
    assert isinstance(layout[0], Text)
    assert layout[0].text.startswith("<begin>")


@pytest.mark.parametrize("format", GRID_FORMATS)
def test_fewer_shown_pairs_leave_the_beginning_as_it_is(format: str):
    """Would catch a prompt that says how many examples there are: a view that is shortened would be another task."""
    few, many = FORMATS[format](FRAME, 1, "asked"), FORMATS[format](FRAME, 2, "asked")
    assert many[: 1 + (len(many) - len(few))] == few[:1] + many[1 : 1 + (len(many) - len(few))]
    assert few[1:3] == many[1:3]


def flat(layout: tuple) -> str:
    """A layout in one string, what is learned between « and »."""
    names = {
        GridSlot: lambda s: f"<grid {s.pair} {s.side}>",
        Text: lambda s: s.text,
        DescriptionSlot: lambda s: "<rule>",
    }
    return "".join(f"«{names[type(s)](s)}»" if s.learn else names[type(s)](s) for s in layout)


@pytest.mark.parametrize("learn", ["asked", "all"])
@pytest.mark.parametrize("num_shown", [1, 3])
def test_the_first_player_sees_examples_and_learns_the_rule_alone(num_shown: int, learn: Learn):
    """Would catch a describer that sees the pair on which its words are tried, or that learns to draw."""
    text = flat(describe(FRAME, num_shown, learn))
    grids = "".join(f"<grid {p} {side}>" for p in range(num_shown) for side in ("input", "output"))
    assert "".join(part for part in text.replace("<", "\n<").split("\n") if part.startswith("<grid")) == grids
    assert text.startswith("<begin>")
    assert text.endswith("<answer>«<rule>»«<end>»")
    assert text.count("«") == 2


@pytest.mark.parametrize("num_shown", [0, 1, 4])
def test_the_second_player_sees_the_rule_and_one_input(num_shown: int):
    """Would catch an example that leaks: whether words suffice could not be seen."""
    assert flat(implement(FRAME, num_shown, "all")) == (
        f"<begin># Rule\n<rule>\n\n# Test\nInput:\n<grid {num_shown} input>\n"
        f"Apply the rule. Output:\n<answer>«<grid {num_shown} output>»«<end>»"
    )


def test_a_description_is_one_piece_with_its_neighbours():
    """Would catch ids that differ from the tokenizer's own, where it merges a full stop with the next newline."""
    second = joined(implement(FRAME, 2, "asked"), "Fill it.")
    assert second[0] == Text("<begin># Rule\nFill it.\n\n# Test\nInput:\n", before_grid=True)
    assert joined(describe(FRAME, 2, "asked"), "Fill it.")[-1] == Text("Fill it.<end>", True)


def test_every_grid_has_texts_that_are_learned_alike_on_both_sides():
    """Would catch a grid whose neighbours are tokenized as if it were not there, and a text that is joined across a mask."""
    for name in FORMATS:
        for learn in ("asked", "all"):
            plain = FORMATS[name](FRAME, 3, learn)
            layout = joined(plain, "Fill it.")
            assert joined(layout) == layout
            written = ["".join(s.text for s in part if isinstance(s, Text)) for part in (joined(plain), plain)]
            assert written[0] == written[1]
            for before, segment, after in zip(layout, layout[1:], layout[2:], strict=False):
                if isinstance(segment, GridSlot):
                    assert isinstance(before, Text)
                    assert isinstance(after, Text)
                    assert before.learn == segment.learn == after.learn
                    assert before.before_grid
                    assert after.after_grid
            assert not any(
                isinstance(a, Text) and isinstance(b, Text) and a.learn == b.learn for a, b in pairwise(layout)
            )


def test_counting_asks_every_question_and_learns_every_answer():
    """Would catch a question that stands after its own answer, and an answer that is given away by an earlier turn."""
    questions = [Question("a", "How many?", "3"), Question("b", "Which?", "1, 2")]
    layout = counting_layout(FRAME, 2, questions)
    text = "".join(s.text if isinstance(s, Text) else f"<grid {s.pair} {s.side}>" for s in layout)
    assert text == (
        "<begin>Grid 1:\n<grid 0 input>\nGrid 2:\n<grid 1 input>\n"
        "How many?\n<answer>3<end><between>Which?\n<answer>1, 2<end>"
    )
    assert [s.text for s in layout if isinstance(s, Text) and s.learn] == ["3<end>", "1, 2<end>"]
    assert not any(s.learn for s in layout if isinstance(s, GridSlot))
    single = counting_layout(FRAME, 1, questions)
    assert isinstance(single[1], Text)
    assert single[1].text == "Grid:\n"


def test_an_unknown_format_is_refused_with_all_names():
    with pytest.raises(UserError, match=", ".join(FORMATS)):
        format_named("chat")
