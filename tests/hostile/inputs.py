"""Hostile inputs by number: `python tests/hostile/inputs.py KIND... --number 1000` tries them and lists what it finds."""

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from calls import Outcome, call, complaint, digest, outcome_of
from kinds import KINDS, Read, make_world
from mutations import mutated_word, replace_file

from arc_ray.cli import complain
from arc_ray.config.tree import known_keys
from arc_ray.errors import UserError, unwrapped

DRY_RUNS = ("train", "tune", "evaluate", "study", "generate")
COMMANDS = (
    *((command, "{}/config.yaml", "name=new", "--dry-run") for command in DRY_RUNS),
    *(("peek", "{}/config.yaml", "--stage", stage) for stage in ("task", "view", "predictions")),
    ("score", "{}/submission.json", "{}/tasks"),
    ("score", "{}/submission.json", "{}/kaggle/challenges.json", "{}/kaggle/solutions.json", "--strict"),
    ("report", "{}/report/quickstart", "{}/runs/run"),
    ("keys", "train.lr"),
    ("init", "{}/new"),
    ("fetch", "smollm2", "storage={}/runs"),
    ("merge", "{}/config.yaml", "name=run", "--to", "{}/merged"),
    ("check", "{}/config.yaml"),
)
NAMES = ("name", "storage", "data.sources.mine.path", "data.sources.counting.dataset", "model.base", "model.adapter")
PLUGIN = "data.sources.own={{kind: plugin, generate: {value}, tasks: [a], examples: 1}}"
PLUGINS = (
    "example_plugins:recolor",
    "json:loads",
    "os:system",
    "nowhere:f",
    "example_plugins",
    "a.b:c.d",
    "__main__:x",
)
ARGUMENTS = ("overrides", "words", "names", "plugins")


@dataclass(frozen=True)
class Finding:
    """An input whose call did not end as it must."""

    kind: str
    seed: int
    mutation: str
    complaint: str
    outcome: Outcome

    @property
    def place(self) -> str:
        """Where an error that escaped was raised: the last line of ours, and the error."""
        fault = self.outcome.fault
        if fault is None:
            return self.complaint
        frames = traceback.extract_tb(fault.__traceback__)
        ours = [f for f in frames if "/arc_ray/" in f.filename] or frames
        return f"{self.complaint}: {Path(ours[-1].filename).name}:{ours[-1].lineno} {ours[-1].name}: {fault!s:.100}"


class Campaign:
    """A valid world, where its config names it, which is made valid again before each input."""

    def __init__(self, folder: Path) -> None:
        self.here, self._valid = folder / "world", folder / "valid"
        make_world(self.here)
        shutil.copytree(self.here, self._valid, symlinks=True)
        self._digest = digest(self.here)

    def try_file(self, name: str, seed: int) -> Finding | None:
        """Put something hostile in the place of one of a kind's files, and have one of its readers read it."""
        rng, kind = random.Random(f"{name}/{seed}"), KINDS[name]
        files = [path for pattern in kind.files for path in sorted(self.here.glob(pattern)) if path.is_file()]
        target = rng.choice(files)
        mutation = f"{target.relative_to(self.here)}: {replace_file(rng, target, files)}"
        read = rng.choice(kind.reads)
        shown = f"{mutation}; {read if isinstance(read, tuple) else read.__name__}"
        return self._judge(name, seed, shown, read, (target.name, target.parent.name, *kind.places), kind.made)

    def try_words(self, name: str, seed: int) -> Finding | None:
        """Call a command with one hostile argument."""
        rng = random.Random(f"{name}/{seed}")
        dry = (rng.choice(DRY_RUNS), "{}/config.yaml", "name=new", "--dry-run")
        match name:
            case "overrides":
                key = rng.choice(sorted(known_keys()))
                mutation, word = mutated_word(rng, f"{key}=1")
                words, names = (*dry, word), (key.rpartition(".")[2], key.partition(".")[0], word[:30])
            case "names":
                key = rng.choice(NAMES)
                mutation, word = mutated_word(rng, f"{key}=abc")
                section, _, last = key.rpartition(".")
                words, names = (*dry, word), (last, section or key, word.partition("=")[2][:30])
            case "plugins":
                value = rng.choice((mutated_word(rng, rng.choice(PLUGINS))[1], rng.choice(PLUGINS)))
                word = mutation = PLUGIN.format(value=repr(value))
                words, names = ("generate", "{}/config.yaml", word, "--dry-run"), ("own", "plugin", value[:30])
            case _:
                words = list(rng.choice(COMMANDS))
                at = rng.randrange(1, len(words))
                mutation, words[at] = mutated_word(rng, words[at])
                names = ()
        made = (*("report.html", "report.md", "trials.csv"), "merged", "config.yaml", "*")
        return self._judge(name, seed, f"{' '.join(words[:2])}: {mutation}", tuple(words), names, made)

    def _judge(
        self, name: str, seed: int, mutation: str, read: Read, names: Sequence[str], made: Sequence[str]
    ) -> Finding | None:
        before = digest(self.here)
        names = [name.replace("{}", str(self.here)) for name in names]
        outcome = self._read(read)
        after = digest(self.here)
        said = complaint(outcome, *names)
        was_file = [path for path, content in before.items() if not content.startswith("link to")]
        changed = [path for path in was_file if after.get(path) != before[path] and Path(path).name not in made]
        if changed:
            said = f"{said or ''} changed {changed[0]}".strip()
        self._restore(after)
        return Finding(name, seed, mutation, said, outcome) if said else None

    def _read(self, read: Read) -> Outcome:
        if isinstance(read, tuple):
            return call(*(word.replace("{}", str(self.here)) for word in read))

        def work() -> None:
            try:
                with unwrapped():
                    read(self.here)
            except UserError as error:
                complain(error)

        return outcome_of(work)

    def _restore(self, found: dict[str, str]) -> None:
        for path in sorted(found, reverse=True):
            if found[path] != self._digest.get(path):
                place = Path(path)
                shutil.rmtree(place) if place.is_dir() and not place.is_symlink() else place.unlink()
        for path, content in sorted(self._digest.items()):
            if found.get(path) != content:
                place, valid = Path(path), self._valid / Path(path).relative_to(self.here)
                place.mkdir() if valid.is_dir() else shutil.copy(valid, place)

    def run(self, name: str, seeds: Sequence[int]) -> list[Finding]:
        """Try a kind with these seeds."""
        attempt = self.try_words if name in ARGUMENTS else self.try_file
        return [finding for seed in seeds if (finding := attempt(name, seed))]


def main() -> None:
    """Try kinds, and print what was found: by place, how often, and the first input that did it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join((*KINDS, *ARGUMENTS)))
    parser.add_argument("--number", type=int, default=1000, help="inputs of each kind")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--verbose", action="store_true", help="print what each finding said")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        campaign = Campaign(Path(folder))
        os.chdir(folder)  # a word may be a path
        for name in given.kinds or (*KINDS, *ARGUMENTS):
            begun = time.monotonic()
            found = campaign.run(name, range(given.first, given.first + given.number))
            print(f"{name}: {given.number} inputs, {len(found)} found, {time.monotonic() - begun:.0f} s", flush=True)
            places = Counter(finding.place for finding in found)
            for place, times in places.most_common():
                first = next(finding for finding in found if finding.place == place)
                print(f"  {times} x {place}\n      seed {first.seed}: {first.mutation:.200}", flush=True)
                if given.verbose:
                    print("      said: " + first.outcome.err[:600].encode("unicode_escape").decode())


if __name__ == "__main__":
    main()
