"""What does a whole command cost? Its wall time by stage, CPU seconds and memory of all its processes, Ray's included.

    python tests/benchmarks/bench_command.py study configs/quickstart.yaml storage=/tmp/quickstart
    python tests/benchmarks/bench_command.py train tiny.yaml storage=/tmp/quickstart

The words are those of `arc-ray`. Memory is the sum of proportional set sizes: what processes share counts once. CPU
seconds are those that a look has seen, so the last part of a second of a process that ends is missing. Of a training the
time from the call to the end of its first step is told as well.
"""

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path

import psutil

from arc_ray.config import load_config, parse_assignments
from arc_ray.runs.folder import read_metrics, run_folder
from arc_ray.runs.starts import with_start

LOOK_SECONDS = 0.5
MEMORY_EVERY = 4
"""Looks: asking for the memory of some twenty processes takes a tenth of a second of a core."""


class Watch:
    """Looks at a process and all that it started, until its end."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._names: dict[tuple[int, float], str] = {}
        self._seconds: dict[tuple[int, float], float] = {}
        self.peak = 0
        self.at_peak: dict[str, int] = {}
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        for look in itertools.count():
            if not self._root.is_running() or self._root.status() == psutil.STATUS_ZOMBIE:
                return
            held: dict[str, int] = defaultdict(int)
            for process in [self._root, *self._root.children(recursive=True)]:
                try:
                    key, name = (process.pid, process.create_time()), name_of(process)
                    self._names[key], times = name, process.cpu_times()
                    self._seconds[key] = times.user + times.system
                    if look % MEMORY_EVERY == 0:
                        held[name] += process.memory_full_info().pss
                except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
                    continue
            if sum(held.values()) > self.peak:
                self.peak, self.at_peak = sum(held.values()), dict(held)
            time.sleep(LOOK_SECONDS)

    def cpu_seconds(self) -> dict[str, tuple[int, float]]:
        """Return the number of processes and their CPU seconds by name."""
        found: dict[str, tuple[int, float]] = {}
        for key, name in self._names.items():
            number, seconds = found.get(name, (0, 0.0))
            found[name] = number + 1, seconds + self._seconds[key]
        return found


def name_of(process: psutil.Process) -> str:
    """Name a process by what it does: a worker of Ray's by its task, another by its program or script."""
    words = process.cmdline()
    if not words:
        return process.name()
    if words[0].startswith("ray::"):
        return re.split(r"[.(]", words[0])[0]
    scripts = [Path(word).name for word in words[:4] if word.endswith(".py")]
    return scripts[-1] if scripts else Path(words[0].split()[0]).name


def first_step(words: list[str], begun: float) -> float:
    """Return the seconds from a time to the end of the first logged step of a training that has just ended."""
    config = with_start(load_config(Path(words[1]), parse_assignments(words[2:])))
    folder = run_folder(config)
    claimed = (folder.local_path() / "run.json").stat().st_mtime
    return claimed - begun + next(record["seconds"] for record in read_metrics(folder) if "train/loss" in record)


def main() -> None:
    """Run the command and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs=argparse.REMAINDER)
    words = parser.parse_args().words
    begun = time.time()
    process = subprocess.Popen([sys.executable, "-m", "arc_ray", *words], stdout=subprocess.PIPE, text=True)
    watch, stages = Watch(process.pid), list[tuple[float, str]]()
    assert process.stdout
    for line in process.stdout:
        seconds = time.time() - begun
        print(f"{seconds:7.1f} s  {line}", end="", flush=True)
        if re.match(r"\[\d/\d\]", line):
            stages.append((seconds, line.strip()))
    code, seconds = process.wait(), time.time() - begun
    watch.thread.join()
    print(f"\nexit code {code} after {seconds:.1f} s; load {os.getloadavg()[0]:.1f} at the end")
    for (start, title), (end, _) in itertools.pairwise([*stages, (seconds, "")]):
        print(f"  {end - start:7.1f} s  {title}")
    if words[0] == "train" and code == 0:
        print(f"first step ended {first_step(words, begun):.1f} s after the call")
    table = watch.cpu_seconds()
    print(f"{sum(used for _, used in table.values()):.1f} CPU seconds:")
    for name, (number, used) in sorted(table.items(), key=lambda entry: -entry[1][1])[:12]:
        print(f"  {used:7.1f} s  {name}{f', {number} processes' if number > 1 else ''}")
    print(f"{watch.peak / 1e9:.2f} GB at most:")
    for name, size in sorted(watch.at_peak.items(), key=lambda entry: -entry[1])[:12]:
        print(f"  {size / 1e9:7.2f} GB  {name}")
    print(json.dumps({"seconds": round(seconds, 1), "peak_gb": round(watch.peak / 1e9, 2)}))
    sys.exit(code)


if __name__ == "__main__":
    main()
