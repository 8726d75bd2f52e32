"""Finds the commands that the documents tell a reader to type, so that tests run them and none can be forgotten.

A document is a Markdown file, or a YAML file whose head (the comment before its first key) is read. A command is a line
of an indented block that begins with one of `PROGRAMS`, perhaps after a label such as `Start:` and variables, or text in
backticks that does so and is more than a name (`ray up` alone is one). In a block of Markdown that has a command, every
line must be one.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    *(ROOT / name / "README.md" for name in (".", "arc_ray", "configs", "cluster", "tests")),
    *sorted((ROOT / "configs").rglob("*.yaml")),
    *sorted((ROOT / "cluster").glob("*.yaml")),
]
PROGRAMS = (
    *("arc-ray", "export", "make", "pip", "pytest", "python", "ray", "tensorboard", "torchrun"),
    *("aws", "docker", "gcloud", "kubectl", "mkdir", "sed", "sky", "vastai"),
)
LABEL = re.compile(r"^(?:Token|Start|Run|Follow|Stop|Fetch): +", re.MULTILINE)
NAME = re.compile(r"[a-z-]+")


class Command(NamedTuple):
    """One simple command: what `&&` joins are several, and a `&` at the end is left out."""

    document: str
    """Path of the document from the repository's root."""
    text: str
    """As it is written, for a shell; lines continued by a backslash are joined, comments left out."""


def commands_in(document: Path) -> list[Command]:
    """List the commands of a document in the order in which they stand there, each once."""
    lines = document.read_text().splitlines()
    if document.suffix == ".yaml":
        head = lines[: next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))]
        lines = [line.removeprefix("#").removeprefix(" ") for line in head]
    name = document.relative_to(ROOT).as_posix()
    found = [piece for text in [*_in_blocks(lines, name), *_in_backticks(lines)] for piece in _pieces(text)]
    return [Command(name, text) for text in dict.fromkeys(found)]


def program_of(text: str) -> str:
    """Return the program that a command runs, without its folder and the variables before it; empty if there is none."""
    words = [word for word in text.split() if not re.match(r"[A-Z_]+=", word)]
    program = words[0].rsplit("/", 1)[-1] if words else ""
    return program if program in PROGRAMS else ""


def _in_blocks(lines: list[str], document: str) -> Iterator[str]:
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    for block in re.split(r"\n(?! {4})", LABEL.sub("    ", joined)):
        indented = [line.strip() for line in block.splitlines() if line.startswith("    ")]
        commands = [line for line in indented if program_of(line)]
        unknown = [line for line in indented if line not in commands]
        assert not (commands and unknown and document.endswith(".md")), (
            f"{document}: {unknown[0]!r} is no command of a known program: see PROGRAMS"
        )
        yield from commands


def _in_backticks(lines: list[str]) -> Iterator[str]:
    prose = " ".join(line.strip() for line in lines if not line.startswith("    "))
    for text in re.findall(r"`([^`]+)`", prose):
        is_name = all(NAME.fullmatch(word) for word in text.split()[1:])
        if program_of(text) and (not is_name or text.split()[0] == "make"):
            yield text.replace("\\|", "|")


def _pieces(text: str) -> Iterator[str]:
    for piece in re.split(r"\s+&&\s+", re.split(r"\s+#", text)[0]):
        yield piece.strip().removesuffix(" &")
