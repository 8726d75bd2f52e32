"""Ctrl-C and SIGTERM, in processes of their own: heard at once, never lost, and patient with what ends in its own time."""

import signal
import subprocess
import sys

import pytest

DEAF = """
import ctypes, os, signal, threading, time
from arc_ray.cli import signals

def wait():
    while signal.SIGTERM not in signals.received:
        time.sleep(0.01)
    os._exit(7)

signals.hear_signals()
threading.Thread(target=wait).start()
print("ready", flush=True)
mutex = ctypes.create_string_buffer(64)
while True:  # the second time it waits for itself, in C, which no signal interrupts
    ctypes.CDLL(None).pthread_mutex_lock(mutex)
"""


def test_a_signal_is_heard_while_the_main_thread_is_in_other_code() -> None:
    """Catches SIGTERM to a whole process group that is told from a killed server only when Ray has ended the process."""
    with subprocess.Popen([sys.executable, "-c", DEAF], stdout=subprocess.PIPE, text=True) as deaf:
        assert deaf.stdout
        assert deaf.stdout.readline() == "ready\n"
        deaf.send_signal(signal.SIGTERM)
        assert deaf.wait(timeout=120) == 7


ENDED = """
class Ended:
    def __del__(self):
        stop()

Ended()
"""
CHOICE = """
from typing import Annotated
from pydantic import BaseModel, Discriminator, Tag

class Chosen(BaseModel):
    of: Annotated[Annotated[int, Tag("int")] | Annotated[str, Tag("str")], Discriminator(lambda of: stop() or "int")]

Chosen.model_construct(of=1).model_dump(warnings=False)
"""
CAUGHT = """
try:
    stop()
except BaseException:
    pass
"""
SWALLOWED = """
import os, signal, time
from arc_ray.cli import signals

def stop():
    os.kill(os.getpid(), signal.SIGTERM)
    for _ in range(1000):
        pass

signals.hear_signals()
{code}
print("it goes on", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("code", [ENDED, CHOICE, CAUGHT])
def test_a_signal_is_not_lost_where_a_library_ignores_exceptions(code: str) -> None:
    """Catches a command that goes on after Ctrl-C: it came while an object's end was told, or a config was written."""
    words = [sys.executable, "-c", SWALLOWED.format(code=code)]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert (ended.stdout, ended.returncode) == ("it goes on\n", signal.SIGTERM)
    assert "ignored" not in ended.stderr


PATIENT = """
import contextlib, os, signal, time
from arc_ray.cli import signals

@contextlib.contextmanager
def cleanly():
    try:
        yield
    finally:
        try:
            raise OSError
        except OSError:
            time.sleep(1.5)
        time.sleep(1.5)
        print("clean", flush=True)

signals.hear_signals()
with cleanly():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(600)
"""


def test_a_signal_is_not_sent_again_to_a_command_that_is_on_its_way_out() -> None:
    """Catches a last checkpoint, or Ray's end, that is cut off because it takes longer than a moment."""
    ended = subprocess.run([sys.executable, "-c", PATIENT], capture_output=True, text=True, timeout=120)
    assert ended.stdout == "clean\n"
    assert ended.stderr.endswith("KeyboardInterrupt\n")


def test_commands_in_one_process_have_one_thread_that_hears_signals() -> None:
    """Catches a notebook or a test that calls commands, and that each leaves with a thread and two open files more."""
    count = "print(threading.active_count(), len(os.listdir('/dev/fd')))"
    script = (
        f"import os, threading\nfrom arc_ray.cli.signals import hear_signals\nfor _ in 'ab': hear_signals(); {count}"
    )
    said = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    first, second = said.splitlines()
    assert first == second
