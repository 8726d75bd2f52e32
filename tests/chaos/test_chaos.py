"""A bucket that fails, and a few faults of the campaign."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from arc_ray.errors import StorageError, unwrapped
from arc_ray.storage import Folder

pytest.importorskip("moto", reason="moto is not installed: pip install '.[dev]'")

from chaos import Alone, hurt
from faults import Fault
from storage_server import StorageServer


@pytest.fixture
def server() -> Iterator[StorageServer]:
    server = StorageServer()
    yield server
    server.close()


@pytest.mark.slow
def test_a_bucket_that_is_away_for_ten_seconds_is_waited_for(server: StorageServer) -> None:
    """Catches a training of days that ends by a hiccup: pyarrow would give up after six seconds."""
    folder = Folder.at(server.bucket("bucket"))
    server.fail("503", 10**6)
    threading.Timer(10.0, server.fail, ("503", 0)).start()
    folder.write_bytes("file", b"content")
    assert folder.read_bytes("file") == b"content"


@pytest.mark.parametrize("fault", ["truncates", "hangs up", "loses the reply"])
def test_a_lost_request_is_made_again(server: StorageServer, fault: str) -> None:
    """Catches half a file that is taken for a whole one."""
    folder = Folder.at(server.bucket("bucket"))
    for number in range(3):
        server.fail(fault, 1)  # pyright: ignore[reportArgumentType]
        folder.write_bytes("file", bytes([number]) * 100_000)
        server.fail(fault, 1)  # pyright: ignore[reportArgumentType]
        assert folder.read_bytes("file") == bytes([number]) * 100_000


def test_a_bucket_that_is_gone_is_named_in_one_line(server: StorageServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a traceback through pyarrow where the storage cannot be read."""
    monkeypatch.setattr("arc_ray.storage.S3_ATTEMPTS", 1)
    folder = Folder.at(server.bucket("bucket"))
    folder.write_bytes("file", b"content")
    server.fail("500", 10**6)
    for read in (folder.names, folder.files, folder.exists, lambda: folder.read_bytes("file"), folder.delete):
        with pytest.raises(StorageError, match=r"the storage does not answer as it should: .*goes on"), unwrapped():
            read()


FAULTS = [
    Fault("generate", "data task", "killed", moment=0.2, delay=0.0, amount=0.0),
    Fault("generate", "head", "killed", moment=0.2, delay=0.0, amount=0.0),
    Fault("generate", "bucket", "503", moment=0.2, delay=0.0, amount=0.9),
]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Alone:
    return Alone(tmp_path_factory.mktemp("alone"))


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_command_that_is_hurt_goes_on_to_the_same_bytes(
    fault: Fault, alone: Alone, server: StorageServer, tmp_path: Path
) -> None:
    """Catches what a fault loses or doubles, a call that hangs, and one that ends without saying why."""
    found = hurt(fault, tmp_path / "hurt", alone, server)
    assert found["happened"], "it was over before, so nothing was tested"
    assert found["wrong"] == []
