"""The spot watcher: a cloud's notice that it will take this machine becomes `ray drain-node`.

Ray Train then hears of it, training writes a checkpoint while the machine is still there, and goes on elsewhere. The
launch files start it on every worker: `python -m arc_ray.cluster.spot aws|gcp --address HEAD:6379`. It needs no Ray in
its process, since it waits for days; the notice is rare.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime

AWS_METADATA = "http://169.254.169.254"
GCP_METADATA = "http://metadata.google.internal"

POLL_SECONDS = 5.0
"""AWS asks to look every 5 s (EC2 User Guide, "Spot Instance interruption notices")."""

AWS_NOTICE_SECONDS = 120.0
"""EC2 gives two minutes (EC2 User Guide, the same page): more is left by a clock only that is behind."""

GCP_NOTICE_SECONDS = 30.0
"""Google gives a Spot VM 30 s (Compute Engine, "Spot VMs", preemption process)."""

MARGIN_SECONDS = 5.0
"""Taken off the notice, for what happens before the machine is gone."""

Notice = Callable[[], float | None]
"""Seconds that are left, or None while nothing is announced. Raises OSError where the metadata service does not answer."""


def aws_notice(metadata: str = AWS_METADATA, now: Callable[[], float] = time.time) -> float | None:
    """Ask EC2's metadata service (version 2, with its session token) whether this spot instance is going to end."""
    token = _request(f"{metadata}/latest/api/token", "PUT", {"X-aws-ec2-metadata-token-ttl-seconds": "60"})
    try:
        body = _request(f"{metadata}/latest/meta-data/spot/instance-action", "GET", {"X-aws-ec2-metadata-token": token})
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise
    ends = datetime.strptime(json.loads(body)["time"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    return min(AWS_NOTICE_SECONDS, max(0.0, ends.timestamp() - now()))


def gcp_notice(metadata: str = GCP_METADATA) -> float | None:
    """Ask Google's metadata server whether this VM is being preempted."""
    url = f"{metadata}/computeMetadata/v1/instance/preempted"
    return GCP_NOTICE_SECONDS if _request(url, "GET", {"Metadata-Flavor": "Google"}).strip() == "TRUE" else None


def wait_for(notice: Notice, sleep: Callable[[float], None] = time.sleep) -> float:
    """Look until something is announced; return the seconds left. A metadata service that does not answer is asked again."""
    is_answering = True
    while True:
        try:
            left = notice()
            is_answering = True
        except OSError as error:
            if is_answering:
                print(f"spot: the metadata service does not answer ({error}); asking again", flush=True)
            left, is_answering = None, False
        if left is not None:
            return left
        sleep(POLL_SECONDS)


def main(arguments: list[str] | None = None) -> int:
    """Watch until the notice comes, drain this node once, and end with the exit code of `ray drain-node`."""
    parser = argparse.ArgumentParser(prog="python -m arc_ray.cluster.spot", description=__doc__)
    parser.add_argument("cloud", choices=["aws", "gcp"])
    parser.add_argument("--address", required=True, help="the head's address and port, such as 10.0.0.1:6379")
    parser.add_argument("--metadata", help="address of the metadata service, where it is not the cloud's usual one")
    given = parser.parse_args(arguments)
    ask = {"aws": aws_notice, "gcp": gcp_notice}[given.cloud]
    usual = {"aws": AWS_METADATA, "gcp": GCP_METADATA}[given.cloud]
    left = wait_for(lambda: ask(given.metadata or usual))
    print(f"spot: this machine ends in {left:.0f} s; draining", flush=True)
    # Without an address `ray drain-node` would look for this node in a Ray of its own.
    command = [
        *("ray", "drain-node", "--address", given.address),
        *("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot instance reclaimed"),
        *("--deadline-remaining-seconds", str(max(0, int(left - MARGIN_SECONDS)))),
    ]
    return subprocess.run(command, env={**os.environ, "RAY_ADDRESS": given.address}).returncode


def _request(url: str, method: str, headers: dict[str, str]) -> str:
    """Metadata services are on the machine itself: no proxy, and an answer within two seconds or none."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(url, method=method, headers=headers), timeout=2) as answer:
        return answer.read().decode()


if __name__ == "__main__":
    sys.exit(main())
