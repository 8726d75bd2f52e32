"""What the tests of several places share: the launch files made to fit a lab of small hosts, and small runs on them."""

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml
from lab import NET, ROOT, Lab, wait_until

DASHBOARD = "http://127.0.0.1:8265"

RUN = {
    "name": "run",
    "data": {
        "sources": {"counting": {"kind": "counting", "examples": 48, "max_side": 5}},
        "mix": {"counting": 500},
        "validation": [],
    },
    "prompt": {"format": "compact", "encoder": "compact"},
    "model": {"scratch": {"hidden_size": 32, "layers": 1, "heads": 2, "intermediate_size": 64}},
    "train": {
        "full": True,
        "row_tokens": 128,
        "batch_rows": 4,
        "micro_rows": 2,
        "max_steps": 1500,
        "checkpoint_every": 100,
    },
    "scaling": {"num_workers": 2, "cpus_per_worker": 2, "threads": 1, "data_cpus": 0.5},
}
"""A training of a minute or more whose two workers do not fit on one host of three CPUs."""


def fitted(name: str, lab: Lab, changes: dict[str, Any], worker: str = "") -> Path:
    """Write a launch file for the lab: its user and key, small object stores, no set-up but the token's; the rest as it is."""
    config = yaml.safe_load((ROOT / "cluster" / f"{name}.yaml").read_text())
    config["auth"] = {**config["auth"], "ssh_user": "root"}
    config["setup_commands"] = config["setup_commands"][:1]
    for kind, more in (("head", ""), ("worker", worker)):
        commands = config[f"{kind}_start_ray_commands"]
        small = f"ray start --object-store-memory=100000000 {more} "
        config[f"{kind}_start_ray_commands"] = [command.replace("ray start ", small) for command in commands]
    for key, value in changes.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    file = lab.folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    return file


@contextmanager
def brought_up(lab: Lab, file: Path) -> Iterator[None]:
    """A token, `ray up`, the dashboard brought to the laptop, and at the end `ray down`."""
    lab.run("ray", "get-auth-token", "--generate")
    lab.run("ray", "up", "-y", "--no-config-cache", str(file), timeout=300)
    try:
        with dashboard(lab, file):
            yield
    finally:
        lab.run("ray", "down", "-y", str(file), timeout=120)


@contextmanager
def dashboard(lab: Lab, file: Path | str) -> Iterator[None]:
    """Bring the dashboard to the laptop, whose port a connection to a dead head may have for a while."""
    with ExitStack() as stack:

        def answers() -> bool:
            running = stack.enter_context(lab.running("ray", "dashboard", str(file)))
            wait_until(lambda: running.poll() is not None or is_there(), 240, "no dashboard", every=2)
            return is_there()

        def is_there() -> bool:
            return jobs(lab, "list", check=False).returncode == 0

        wait_until(answers, 300, "no dashboard", every=2)
        yield


def jobs(
    lab: Lab, verb: str, *words: str, check: bool = True, timeout: float = 240
) -> subprocess.CompletedProcess[str]:
    """Run `ray job VERB` on the laptop."""
    return lab.run("ray", "job", verb, "--address", DASHBOARD, *words, check=check, timeout=timeout)


def submit(lab: Lab, *command: str, wait: bool = True, name: str = "") -> subprocess.CompletedProcess[str]:
    """Submit an `arc-ray` command from the repository's root, as the README says."""
    options = ([] if wait else ["--no-wait"]) + (["--submission-id", name] if name else [])
    return jobs(lab, "submit", *options, "--working-dir", ".", "--", "arc-ray", *command, check=False)


def status(lab: Lab, name: str) -> str:
    """Return the state of a job."""
    told = jobs(lab, "status", name, check=False).stdout
    words = {
        "succeeded": "SUCCEEDED",
        "failed": "FAILED",
        "was stopped": "STOPPED",
        "RUNNING": "RUNNING",
        "PENDING": "PENDING",
    }
    return next((state for word, state in words.items() if word in told), "UNKNOWN")


def num_nodes(lab: Lab, file: Path) -> int:
    """Count the active nodes that `ray status` tells on the head."""
    told = lab.run("ray", "exec", str(file), "ray status", check=False, timeout=120).stdout
    active = told.partition("Active:")[2].partition("Pending:")[0]
    lines = [line.split() for line in active.splitlines()]
    return sum(int(words[0]) if words[0].isdigit() else 1 for words in lines if words and words[0] != "(no")


def steps(folder: Path) -> list[int]:
    """List the steps in a run's metrics, in the order of the file."""
    file = folder / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [record["step"] for record in map(json.loads, lines) if "train/loss" in record]


def checkpoints(folder: Path) -> list[int]:
    """List the steps of whole checkpoints."""
    return sorted(int(path.parent.name.split("-")[1]) for path in folder.glob("checkpoint-*/arc_ray.json"))


def hosts_at_work(lab: Lab, numbers: Sequence[int]) -> list[int]:
    """List the hosts on which a training worker runs (Ray names a process by what it does)."""
    return [n for n in numbers if any("TrainWorker" in command for command in lab.ray_processes(n))]


def address(number: int) -> str:
    """Return a host's address."""
    return f"{NET}.{number}"
