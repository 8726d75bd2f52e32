"""The spot watcher against fakes of the clouds' metadata services."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from arc_ray.cluster import spot


@contextmanager
def metadata(answers: dict[str, str]) -> Iterator[str]:
    """A metadata service: EC2's wants its token and says 404 while nothing is announced; Google's wants its header."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self, status: int, body: str = "") -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def do_PUT(self) -> None:
            has_life = self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
            self._answer(200, "token-1") if has_life else self._answer(400)

        def do_GET(self) -> None:
            known = self.headers["X-aws-ec2-metadata-token"] == "token-1" or self.headers["Metadata-Flavor"] == "Google"
            if not known:
                self._answer(401)
            elif self.path in answers:
                self._answer(200, answers[self.path])
            else:
                self._answer(404)

        def log_message(self, format: str, *args: Any) -> None:
            """Stay silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


AWS, GCP = "/latest/meta-data/spot/instance-action", "/computeMetadata/v1/instance/preempted"


def test_aws_notice_is_the_time_that_is_left() -> None:
    """Catches local time taken for UTC, 404 taken for an error (it means: nothing announced), and a clock that was put and
    promises a day, or a time that has passed."""
    ends = time.time() + 120
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(ends))
    answers: dict[str, str] = {}
    with metadata(answers) as url:
        assert spot.aws_notice(url) is None
        answers[AWS] = f'{{"action": "terminate", "time": "{stamp}"}}'
        left = spot.aws_notice(url)
        behind, ahead = (spot.aws_notice(url, now=lambda day=day: time.time() + 86_400 * day) for day in (-1, 1))
    assert left is not None
    assert 115 < left <= 120
    assert (behind, ahead) == (120, 0)


def test_gcp_notice() -> None:
    """Catches FALSE taken for a notice because it is an answer."""
    answers = {GCP: "FALSE"}
    with metadata(answers) as url:
        assert spot.gcp_notice(url) is None
        answers[GCP] = "TRUE\n"
        assert spot.gcp_notice(url) == 30


def test_a_silent_metadata_service_is_asked_again(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a watcher that dies at the first hiccup, months before the notice, and one that fills the disk with it."""
    outcomes: list[Any] = [OSError("down"), OSError("down"), None, 100.0]

    def notice() -> float | None:
        outcome = outcomes.pop(0)
        if isinstance(outcome, OSError):
            raise outcome
        return outcome

    assert spot.wait_for(notice, sleep=lambda seconds: None) == 100
    assert capsys.readouterr().out.count("does not answer") == 1


def test_the_notice_drains_this_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches options that `ray drain-node` does not have: they are hidden and may change, so Ray's own parser is asked."""
    from ray.scripts.scripts import cli

    called: list[list[str]] = []
    monkeypatch.setattr(
        spot.subprocess, "run", lambda command, env: called.append([*command, env["RAY_ADDRESS"]]) or Done
    )
    with metadata({GCP: "TRUE"}) as url:
        assert spot.main(["gcp", "--address", "10.0.0.1:6379", "--metadata", url]) == 0
    (*command, address) = called[0]
    assert address == "10.0.0.1:6379"
    assert command[:2] == ["ray", "drain-node"]
    given = cli.commands["drain-node"].make_context("drain-node", command[2:]).params
    assert given["deadline_remaining_seconds"] == 25
    assert given["node_id"] is None, "this node"


class Done:
    returncode = 0
