"""Workers that are forked from one process that has imported what they need: importing is most of what slow tests take.

A Python is started for each as always, by Ray, by `arc-ray train` or by `multiprocessing`, which `sitecustomize.py` makes
wait for a fork that does its work: with its words, environment and open files. Each ends as the other does, whoever is
killed.
"""

import importlib
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

SOCKET = "ARC_RAY_TESTS_FORKS"
"""The variable that names the socket of the process that is forked."""
FORKED = {"default_worker.py", "arc_ray.train.alone"}
"""What a Python is called with that is a worker: of Ray, or without Ray."""
FORKSERVER = "from multiprocessing.forkserver import main;"
"""With what the code begins that Python's own process to fork from is called with."""
IMPORTED = (
    "deepspeed",
    "transformers.models.llama.modeling_llama",
    "torch.distributed",
    "arc_ray.models.lora",
    "arc_ray.evaluate.answering",
    "scipy.ndimage",
    "pandas",
)
"""Not Ray, which reads what it is told by the environment as soon as it is imported."""
READ_AT_IMPORT = ("HF_", "LD_", "TRANSFORMERS_", "TORCH")
"""How variables begin that these libraries read as they are imported: who has others must import by itself."""
QUIET = "HF_HUB_DISABLE_TELEMETRY"
"""But for this one, which `arc-ray` sets for its workers; it is set for the process that is forked, too."""
LOOK_SECONDS = 1.0
"""How often a process that waits for its fork looks whether the one that started it is still there."""
APART = 500
"""From where on files have numbers while they change them."""
CANNOT = 1000
"""Instead of an exit code, of which there are fewer."""


def fork_workers() -> None:
    """Have all workers that are started from now on forked, as long as this process lives; on Linux, without a GPU."""
    if SOCKET in os.environ or sys.platform != "linux" or os.path.exists("/dev/nvidiactl"):
        return
    folder = tempfile.TemporaryDirectory(prefix="forks-")
    path = str(Path(folder.name) / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(100)
        given = listener.fileno()
        words = [sys.executable, __file__, str(given)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL}
        process = subprocess.Popen(words, pass_fds=[given], env={**os.environ, QUIET: "1"}, **pipes)
        _kept.extend([folder, process])
    os.environ[SOCKET] = path


_kept: list[object] = []
"""The process that is forked, and its folder: they end with this process."""


def fork_of(process: int) -> int | None:
    """Return the process that does another's work, if there is one."""
    with suppress(KeyError, FileNotFoundError, ValueError):
        return int(Path(f"{os.environ[SOCKET]}-{process}").read_text())
    return None


def is_forked(words: Sequence[str]) -> bool:
    """Tell whether a fork could do what a Python is called for with these words."""
    return any(word.rsplit("/", 1)[-1] in FORKED or word.startswith(FORKSERVER) for word in words)


def be_forked(path: str) -> None:
    """Have a fork do what this process was started for, and end as it does; return where it cannot be forked."""
    with socket.socket(socket.AF_UNIX) as connection:
        listed = sorted(map(int, os.listdir("/proc/self/fd")))  # with the file by which they are listed
        files = [file for file in listed if file != connection.fileno() and os.path.exists(f"/proc/self/fd/{file}")]
        connection.connect(path)
        about = [sys.orig_argv[1:], sys.path, os.getcwd(), dict(os.environ), files]
        said = json.dumps(about).encode()
        socket.send_fds(connection, [len(said).to_bytes(4)], files)
        connection.sendall(said)
        parent = os.getppid()
        while not select.select([connection], [], [], LOOK_SECONDS)[0]:
            if os.getppid() != parent:
                os._exit(1)  # as Ray's workers look, too: the fork has another parent
        answer = connection.recv(4)
    code = int.from_bytes(answer, signed=True)
    if code < 0:
        os.kill(os.getpid(), -code)
    if code != CANNOT:
        os._exit(code if answer else 1)


def serve(listener: socket.socket) -> None:
    """Fork for each process that asks, until the one that started this one has ended."""
    for name in (*IMPORTED, "warm"):
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system forgets children that have ended
    while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
        connection, _ = listener.accept()
        if not os.fork():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            if worker := os.fork():
                stay_beside(worker, connection, listener.getsockname())
            become(connection)
        connection.close()


def stay_beside(worker: int, connection: socket.socket, path: str) -> NoReturn:
    """Wait for the end of a fork, and tell the process that asked; if that one ends before, kill the fork."""
    asking, *_ = struct.unpack(
        "3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    )
    note = Path(f"{path}-{asking}")
    note.write_text(str(worker))
    ended, ends = os.pidfd_open(worker), select.poll()
    ends.register(ended, select.POLLIN)
    ends.register(connection, select.POLLRDHUP)
    if ended not in [file for file, _ in ends.poll()]:
        os.kill(worker, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
    note.unlink(missing_ok=True)  # the number may be another process's soon
    with suppress(BrokenPipeError):
        connection.send(code.to_bytes(4, signed=True))
    os._exit(0)


def become(connection: socket.socket) -> NoReturn:
    """Do in this process what another was started for."""
    os.setsid()  # Ray kills the process group of a worker that has ended
    length, files, *_ = socket.recv_fds(connection, 4, 250)
    about = bytearray()
    while len(about) < int.from_bytes(length):
        about += connection.recv(2**20)
    words, places, folder, environment, numbers = json.loads(about)
    if read_at_import(environment) != read_at_import(os.environ):
        connection.send(CANNOT.to_bytes(4))
        os._exit(0)
    for number, file in zip(numbers, files, strict=True):
        os.dup2(file, APART + number)
    os.closerange(3, APART)
    for number in numbers:
        os.dup2(APART + number, number)
    os.closerange(APART, APART + max(numbers) + 1)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:] = places
    sys.modules.pop("warm")  # who imports more may import it again, last
    words = [word for word in words if word not in ("-u", "-P")]
    sys.argv = words[words[0] == "-m" :]
    if words[0] == "-m":
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        exec(words[1], {"__name__": "__main__"})
    else:
        runpy.run_path(words[0], run_name="__main__")
    sys.exit()


def read_at_import(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that have had their effect once libraries are imported."""
    return {name: value for name, value in environment.items() if name.startswith(READ_AT_IMPORT) and name != QUIET}


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
