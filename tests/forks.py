"""Worker processes of the tests' Ray, forked from one that has imported what they need: a fifth of what such tests take.

Ray starts a Python for each worker, which `sitecustomize.py` makes wait for its fork: they share standard streams,
environment and words, and each ends with the other.
"""

import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

SOCKET = "ARC_RAY_TESTS_FORKS"
"""The variable that names the socket of the process that is forked."""
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
READ_AT_IMPORT = ("HF_", "TRANSFORMERS_", "TORCH")
"""How variables begin that these libraries read as they are imported: who has others must import by itself."""
CANNOT = b"n"
LONGEST = 2**20
"""Bytes of what a process says of itself."""


@contextmanager
def forking(folder: str) -> Iterator[tuple[str, str]]:
    """Have a process that is forked, and yield the variable, with its value, that tells a Ray so."""
    path = str(Path(folder) / "forks")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(100)
        given = listener.fileno()
        process = subprocess.Popen([sys.executable, __file__, str(given)], pass_fds=[given], stdin=subprocess.PIPE)
    try:
        yield SOCKET, path
    finally:
        process.kill()
        process.wait()


def be_forked(path: str) -> None:
    """Have a fork do what this process was started for, and end with it; return where it cannot be forked."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        about = json.dumps([sys.argv, os.getcwd(), dict(os.environ)]).encode()
        socket.send_fds(connection, [len(about).to_bytes(4)], [1, 2])
        connection.sendall(about)
        if connection.recv(1) != CANNOT:
            os._exit(0)


def serve(listener: socket.socket) -> None:
    """Fork for each process that asks, until the one that started this one has ended."""
    for name in IMPORTED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system forgets forks that have ended
    while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
        connection, _ = listener.accept()
        if not os.fork():
            listener.close()
            become(connection)
        connection.close()


def become(connection: socket.socket) -> None:
    """Do in this process what another was started for."""
    os.setsid()  # Ray kills the process group of a worker that has ended
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    length, streams, *_ = socket.recv_fds(connection, 4, 2)
    about = bytearray()
    while len(about) < int.from_bytes(length):
        about += connection.recv(LONGEST)
    words, folder, environment = json.loads(about)
    if read_at_import(environment) != read_at_import(os.environ):
        connection.send(CANNOT)
        os._exit(0)
    for number, stream in zip((1, 2), streams, strict=True):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = words
    threading.Thread(target=lambda: (connection.recv(1), os._exit(1)), daemon=True).start()
    runpy.run_path(words[0], run_name="__main__")
    sys.exit()


def read_at_import(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that have had their effect once libraries are imported."""
    return {name: value for name, value in environment.items() if name.startswith(READ_AT_IMPORT)}


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
