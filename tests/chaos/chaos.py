"""Chance tries it: a small command is hurt at a random moment, called again until it is done, and must lose nothing.

    python tests/chaos/chaos.py --out /tmp/chaos --seeds 0:40

Each seed draws a fault (faults.py), deals it to a real command, and calls the same command again until it ends with 0. Each
call must end in time, and one that fails with exit code 1, 2, 130 or 143 and a last line that says why. Then the storage is
compared, byte by byte, with that of the command left alone. One JSON line a seed goes to `chaos.jsonl`.
"""

import argparse
import contextlib
import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pyarrow.fs as pafs
import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

from faults import MARK, Fault, clock_of, deal, draw, processes
from small_study import small_study
from storage_server import StorageServer
from training import is_agent

from arc_ray.storage import Folder

MOST_CALLS = 5
CALL_SECONDS = 900.0
"""After so long a call hangs."""
END_SECONDS = 60.0
"""After so long processes have outlived their command."""

WORDS = {
    "prepare": ["evaluate", "name=first", "evaluate.checkpoint=@count", "evaluate.sets=[unseen]"],
    "generate": ["generate", "data.sources.counting.examples=1200", "data.sources.rearc.examples=24"],
    "train": ["train", "name=one", "start=count"],
    "group": ["train", "name=group", "start=count", "scaling.num_workers=2", "train.micro_rows=3", "ray.num_cpus=4"],
    "tune": ["tune", "name=tuned", "start=base", "tune.space={train.lr: {grid: [1.0e-2, 1.0e-3]}}"],
    "evaluate": ["evaluate", "name=asked", "evaluate.checkpoint=@count", "evaluate.batch_tokens=4096"],
    "study": ["study"],
}
"""The command of each workload."""
PREPARED = ("train", "group", "tune", "evaluate", "study")
"""Workloads that begin with data and first runs, so that they are short; "prepare" and "generate" make these."""
FIRST = ("data", "tiny", "count")

TIMES = re.compile(
    r"seconds|started|ended|per_second|memory|stall|mfu|process|created|begun|hours|minutes|base_model_name",
    re.IGNORECASE,
)
"""Keys of JSON records that tell of time or of the machine; of a bucket's model, an adapter names this node's copy."""
UNEQUAL = {
    r"\.tfevents\.": "TensorBoard's records hold the time of each",
    r"(^|/)timings/": "seconds that examples took",
    r"(^|/)tune/": "Tune's own scratch",
    r"(^|/)report\.(html|md)$": "the cost of each trial in seconds and tokens a second",
    r"checkpoint-\d+/README\.md$": "peft's card names the path of the base, for a bucket that of this node's copy",
    r"^filler$": "what filled the disk",
    r"(^|/)run\.json$": "when and where a run began; compared but for that",
}
"""Files that need not be equal, and why."""


class Place:
    """A storage of its own for one call after another: a disk of this machine that can be full, or a bucket."""

    def __init__(self, folder: Path, server: StorageServer | None) -> None:
        self.folder, self.server, self.disk = folder, server, folder / "disk"
        self.disk.mkdir(parents=True, exist_ok=True)
        self.uri = server.bucket(folder.name) if server else str(self.disk / "runs")

    def files(self) -> dict[str, bytes]:
        """Read all that is there, without what tells the places apart."""
        folder = Folder.at(self.uri)
        found = {name: folder.read_bytes(name) for name in folder.files()}
        path, mark, query = self.uri.partition("?")
        for place in (path.encode(), *([(mark + query).encode()] if query else [])):
            found = {name: content.replace(place, b"") for name, content in found.items()}
        return found

    def clock(self) -> int:
        """Count the files that are there."""
        if self.server:
            return self.server.num_files(self.folder.name)
        return sum(1 for path in self.disk.rglob("*") if path.is_file())

    def begin_with(self, runs: Path) -> None:
        """Take over data and first runs."""
        filesystem, path = Folder.at(self.uri).filesystem()
        for name in FIRST:
            filesystem.create_dir(f"{path}/{name}", recursive=True)
            pafs.copy_files(str(runs / name), f"{path}/{name}", destination_filesystem=filesystem)


class Call:
    """One call of a command, in a process group of its own."""

    def __init__(self, place: Place, workload: str, number: int, environment: Mapping[str, str] | None = None) -> None:
        self.mark, self.log = f"{place.folder}-{number}", place.folder / f"call-{number}.log"
        config = place.folder / "config.yaml"
        tree = small_study(place.folder)
        tree["tune"] |= {"scheduler": {"kind": "fifo"}}  # pyright: ignore[reportOperatorIssue]
        config.write_text(yaml.safe_dump({**tree, "storage": place.uri}))
        temporary = place.folder / "t"
        temporary.mkdir(exist_ok=True)
        own = {MARK: self.mark, "TMPDIR": str(temporary), "XDG_CACHE_HOME": str(place.folder / "cache")}
        word, *overrides = WORDS[workload]
        self.run = subprocess.Popen(
            [sys.executable, "-m", "arc_ray", word, str(config), *overrides],
            env={
                **os.environ,
                **own,
                **(environment or {}),
                "RAY_AUTH_MODE": "disabled",
                "PYTHONUNBUFFERED": "1",
                "OMP_NUM_THREADS": "1",
                "RAY_worker_niceness": "0",
            },
            stdout=self.log.open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def is_over(self) -> bool:
        return self.run.poll() is not None

    def end(self) -> tuple[int, str]:
        """Wait for the end; return the exit code and what is wrong with how it ended."""
        try:
            code = self.run.wait(CALL_SECONDS)
        except subprocess.TimeoutExpired:
            stacks = subprocess.run(["py-spy", "dump", "--pid", str(self.run.pid)], capture_output=True, text=True)
            self.kill()
            return -1, f"hangs\n{stacks.stdout}"
        said = self.log.read_text()
        last = said.rstrip().rsplit("\n", 1)[-1]
        if code not in (0, 1, 2, 130, 143, -9):
            return code, f"exit code {code}: {last}"
        if code in (0, -9):  # Tune shows the trace of a process that it replaces
            return code, ""
        if "Traceback (most recent call last)" in said:
            return code, f"a traceback: {last}"
        return code, "" if last.startswith("error: ") else f"no reason: {last}"

    def left(self) -> list[str]:
        """Name the processes that outlive the command, but for two of Ray's that end a minute after their raylet."""
        family = [process for process in processes(self.mark) if not is_agent(process)]
        _, alive = psutil.wait_procs(family, timeout=END_SECONDS)
        return [" ".join(process.cmdline())[:80] for process in alive if process.is_running()]

    def kill(self) -> None:
        """Kill all that is left of it."""
        for process in processes(self.mark):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def timeless(name: str, content: bytes) -> Any:
    """Leave times out of a file."""
    if name.endswith(".csv"):
        return [_timeless(row) for row in csv.DictReader(content.decode().splitlines())]
    if name.endswith(".jsonl"):
        return [_timeless(json.loads(line)) for line in content.splitlines()]
    return _timeless(json.loads(content)) if name.endswith(".json") else content


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(inner) for key, inner in value.items() if not TIMES.search(key)}
    return [_timeless(inner) for inner in value] if isinstance(value, list) else value


def differences(expected: dict[str, bytes], found: dict[str, bytes]) -> list[str]:
    """Name the files that are missing, too many or unequal."""
    names = {name for name in expected | found if not any(re.search(pattern, name) for pattern in UNEQUAL)}
    wrong = [f"missing: {name}" for name in names - found.keys()]
    wrong += [f"too many: {name}" for name in names - expected.keys()]
    both = names & expected.keys() & found.keys()
    return sorted(wrong) + sorted(n for n in both if timeless(n, expected[n]) != timeless(n, found[n]))


def hurt(fault: Fault, folder: Path, alone: "Alone", server: StorageServer) -> dict[str, Any]:
    """Deal a fault, call again until all is done, and compare; `wrong` of what is returned is empty if all is well."""
    begun = time.monotonic()
    expected, first, last = alone.files(fault.workload)
    place = Place(folder, server if fault.who == "bucket" else None)
    with contextlib.ExitStack() as stack:
        if fault.who == "disk":
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", str(place.disk)], check=True)
            stack.callback(lambda: subprocess.run(["umount", "-l", str(place.disk)], check=True))
        if fault.workload in PREPARED:
            place.begin_with(alone.runs())
        moment = first + fault.moment * (last - first)
        calls, wrong, happened = list[int](), list[str](), ""
        while len(calls) < MOST_CALLS and (not calls or calls[-1] != 0):
            has_clock = fault.who == "clock" and not calls
            call = Call(place, fault.workload, len(calls), clock_of(folder) if has_clock else None)
            if not calls:
                while place.clock() < moment and not call.is_over():
                    time.sleep(0.03)
                time.sleep(fault.delay)
                if not call.is_over():
                    happened = deal(fault, call.mark, call.run.pid, place.disk, server, call.is_over)
            code, complaint = call.end()
            calls.append(code)
            server.faults = 0
            (place.disk / "filler").unlink(missing_ok=True)
            wrong += [f"call {len(calls)}: {complaint}"] if complaint else []
        wrong += [f"outlived: {title}" for title in call.left()]
        call.kill()
        wrong += differences(expected, place.files()) if calls[-1] == 0 else ["it never ends with 0"]
    if not wrong:
        shutil.rmtree(place.folder, ignore_errors=True)
    about = {"fault": str(fault), "who": fault.who, "what": fault.what, "happened": happened}
    return about | {"calls": calls, "seconds": round(time.monotonic() - begun), "wrong": wrong}


class Alone:
    """Each command left alone, once a campaign."""

    def __init__(self, out: Path) -> None:
        self._out = out

    def runs(self) -> Path:
        """Return a storage with the data and the first runs that commands begin with."""
        self.files("prepare")
        return self._out / "alone-prepare" / "disk" / "runs"

    def files(self, workload: str) -> tuple[dict[str, bytes], int, int]:
        """Run it, unless it was run; return the files, and how many there were before and after."""
        place = Place(self._out / f"alone-{workload}", None)
        record = place.folder / "clock.json"
        if not record.exists():
            if workload in PREPARED:
                place.begin_with(self.runs())
            before = place.clock()
            call = Call(place, workload, 0)
            code, complaint = call.end()
            assert code == 0, f"{workload} fails by itself: {complaint}; see {call.log}"
            record.write_text(json.dumps([before, place.clock()]))
        before, after = json.loads(record.read_text())
        return place.files(), before, after


def main() -> None:
    """Run the seeds that are asked for, one after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", default="0:40", help="first:end, or numbers with commas")
    arguments = parser.parse_args()
    first, colon, end = arguments.seeds.partition(":")
    seeds = range(int(first), int(end)) if colon else map(int, arguments.seeds.split(","))
    server = StorageServer()
    alone = Alone(arguments.out)
    for seed in seeds:
        found = {"seed": seed} | hurt(draw(seed), arguments.out / f"seed-{seed}", alone, server)
        print(json.dumps(found), flush=True)
        with (arguments.out / "chaos.jsonl").open("a") as file:
            file.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
