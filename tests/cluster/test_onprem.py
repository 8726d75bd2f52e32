"""Your own machines, for real: `cluster/onprem.yaml` on hosts with a sshd each; a spot notice, a power cut, and the end.

One cluster serves all tests of this file, in their order: a head (no CPUs) and three workers of three CPUs.
"""

import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from lab import PATIENCE, Lab, laboratory, missing, wait_until
from places import (
    RUN,
    address,
    brought_up,
    checkpoints,
    dashboard,
    fitted,
    hosts_at_work,
    jobs,
    num_nodes,
    status,
    steps,
    submit,
)
from small_study import small_study

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(missing()), reason=missing() or "possible here")]

HEAD, WORKERS = 11, (12, 13, 14)
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
"""States of a job that is over; one that was just submitted is pending."""

NOTICE = """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b'TRUE')
http.server.HTTPServer(('127.0.0.1', 8099), Handler).serve_forever()
"""
"""Google's metadata server, on the day it takes the machine."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[Lab, Path]]:
    """The hosts, up as `ray up` makes them: token, autoscaler and start commands are the launch file's own."""
    with laboratory() as lab:
        lab.boot(HEAD, *WORKERS)
        (lab.shared / "run.yaml").write_text(yaml.safe_dump({**RUN, "storage": str(lab.shared / "runs")}))
        changes = {
            "provider": {"head_ip": address(HEAD), "worker_ips": [address(n) for n in WORKERS]},
            "auth": {"ssh_private_key": str(lab.key)},
        }
        file = fitted("onprem", lab, changes, worker="--num-cpus=3")
        with brought_up(lab, file):
            wait_until(lambda: num_nodes(lab, file) == 4, PATIENCE, "the workers did not join", every=3)
            yield lab, file
        # The workers' Ray ends by itself once the head is gone.
        wait_until(
            lambda: not any(lab.ray_processes(n) for n in (HEAD, *WORKERS)), 120, "Ray is left on a host", every=1
        )
    assert lab.names_left() == []


def test_check_asks_every_node(cluster: tuple[Lab, Path]) -> None:
    """Catches a check that sees only the head, and storage that looks shared because the head alone wrote there."""
    lab, _ = cluster
    done = submit(lab, "check", str(lab.shared / "run.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr
    for number in (HEAD, *WORKERS):
        assert f"node host{number} ({address(number)}): ray 2.60.0" in done.stdout
    assert "each of 4 nodes reads what the others write" in done.stdout
    assert not list((lab.shared / "runs").glob(".check*"))
    assert re.search(r"storage: one node writes [\d.e+-]+ GB/s, another one reads [\d.e+-]+ GB/s", done.stdout)
    fast = exchange_rate(done.stdout)
    assert re.search(r"network: a step exchanges [\d.e+-]+ GB, which takes [\d.e+-]+ s", done.stdout) or (
        "plan: not known yet" in done.stdout
    )
    for number in WORKERS:
        lab.throttle(number, "100mbit")
    slow = exchange_rate(submit(lab, "check", str(lab.shared / "run.yaml")).stdout)
    for number in WORKERS:
        lab.throttle(number, "")
    print(f"an all-reduce: {fast} GB/s, and {slow} at 100 Mbit/s")
    assert slow < 0.0125 < fast
    done = submit(lab, "check", str(lab.shared / "run.yaml"), "storage=/root/runs")
    assert done.returncode == 1
    assert "storage /root/runs is not shared: host" in done.stdout
    assert "exit code 2" in done.stdout
    done = submit(lab, "check", str(lab.shared / "run.yaml"), "storage=runs")
    assert "a job's own folder is deleted after it" in done.stdout
    assert done.returncode == 1


def test_the_code_that_is_sent_is_what_runs(cluster: tuple[Lab, Path]) -> None:
    """Catches nodes whose installed package wins over the working directory of a job, in its driver or in its tasks."""
    lab, _ = cluster
    assert lab.inside(HEAD, "echo $PYTHONPATH").stdout.strip() == ""
    usual, lab.checkout = lab.checkout, lab.folder / "sent"
    shutil.copytree(usual / "arc_ray", lab.checkout / "arc_ray", ignore=shutil.ignore_patterns("__pycache__"))
    file = lab.checkout / "arc_ray" / "cluster" / "preflight.py"
    driver, task = 'note(f"node {node.name}:', "NodeReport(socket.gethostname()"
    assert (file.read_text().count(driver), file.read_text().count(task)) == (1, 1)
    changed = file.read_text().replace(driver, driver.replace("node ", "node (as sent) "))
    file.write_text(changed.replace(task, 'NodeReport("sent-" + socket.gethostname()'))
    try:
        done = submit(lab, "check", str(lab.shared / "run.yaml"))
    finally:
        lab.checkout = usual
    for number in (HEAD, *WORKERS):
        assert f"node (as sent) sent-host{number} ({address(number)})" in done.stdout, done.stdout + done.stderr


def exchange_rate(told: str) -> float:
    """Read what `arc-ray check` says of the network, in GB/s."""
    found = re.search(r"network: ([\d.e+-]+) GB/s in an all-reduce of 64 MiB between 2 workers on 2 nodes", told)
    assert found is not None, told
    return float(found[1])


def test_without_the_token_nobody_gets_in(cluster: tuple[Lab, Path]) -> None:
    """Catches a cluster that only seems secured."""
    lab, _ = cluster
    with_token, lab.environment = lab.environment, {"RAY_AUTH_MODE": "disabled"}
    try:
        done = jobs(lab, "list", check=False)
    finally:
        lab.environment = with_token
    assert done.returncode != 0
    assert "nauthorized" in done.stdout + done.stderr


def start_training(lab: Lab, name: str, *overrides: str) -> Path:
    """Submit a training on two hosts and wait for its first checkpoint."""
    done = submit(lab, "train", str(lab.shared / "run.yaml"), f"name={name}", *overrides, wait=False, name=name)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = lab.shared / "runs" / name
    wait_until(lambda: bool(checkpoints(folder)) or status(lab, name) == "FAILED", PATIENCE, "no checkpoint", every=1)
    assert status(lab, name) == "RUNNING", jobs(lab, "logs", name).stdout
    return folder


def end_of(lab: Lab, name: str, folder: Path) -> str:
    """Wait for a training's end, check that every step was done once, and return its log."""
    wait_until(lambda: status(lab, name) in ENDED, PATIENCE, f"{name} did not end: {steps(folder)[-1:]}", every=3)
    log = jobs(lab, "logs", name).stdout
    assert status(lab, name) == "SUCCEEDED", log
    num_steps = json.loads((folder / "result.json").read_text())["steps"]
    assert steps(folder) == list(range(1, num_steps + 1))
    assert "\r" not in log
    assert "━" not in log
    assert "Traceback" not in log
    return log


def test_an_announced_loss_is_checkpointed_and_not_counted(cluster: tuple[Lab, Path]) -> None:
    """Catches a spot notice that nobody hears: no checkpoint at it, or counted as a failure, of which none is allowed."""
    lab, file = cluster
    folder = start_training(
        lab, "notice", "train.max_failures=0", "train.checkpoint_every=300", "train.keep_checkpoints=99"
    )
    (leaving, *_) = hosts_at_work(lab, WORKERS)
    with lab.running("ssh", *ssh(lab, leaving), f'python -c "{NOTICE}"'):
        watcher = f"python -m arc_ray.cluster.spot gcp --address {address(HEAD)}:6379 --metadata http://127.0.0.1:8099"
        begun = time.monotonic()
        assert "draining" in lab.inside(leaving, f"RAY_AUTH_MODE=token {watcher}").stdout
    wait_until(lambda: any(step % 300 for step in checkpoints(folder)), 110, f"no checkpoint: {checkpoints(folder)}")
    print(f"checkpoint {time.monotonic() - begun:.1f} s after the notice")
    lab.kill(leaving)
    end_of(lab, "notice", folder)
    lab.boot(leaving)
    wait_until(lambda: num_nodes(lab, file) == 4, PATIENCE, "a host that came back was not joined again", every=3)


def ssh(lab: Lab, number: int) -> list[str]:
    """Options and address of a host for ssh."""
    return [
        "-i",
        str(lab.key),
        "-o",
        "StrictHostKeyChecking=no",
        "-o",
        "UserKnownHostsFile=/dev/null",
        f"root@{address(number)}",
    ]


def test_the_quickstart_s_study_survives_a_power_cut(cluster: tuple[Lab, Path]) -> None:
    """Catches a study that runs on a laptop only: its stages, trials and evaluation are spread over hosts, one is cut off."""
    lab, file = cluster
    study: dict[str, Any] = {**small_study(lab.shared / "runs"), "scaling": RUN["scaling"]}
    study["train"]["micro_rows"] = 3
    # The trainings of other tests have made another `counting` there.
    for name in ("counting", "counting_few", "counting_held_out"):
        study["data"]["sources"][name]["dataset"] = "counting_of_study"
    study["runs"]["tiny"] |= {"data.mix": {"grid_text": 1600}, "train.max_steps": 300, "train.checkpoint_every": 50}
    (lab.shared / "study.yaml").write_text(yaml.safe_dump(study))
    done = submit(lab, "study", str(lab.shared / "study.yaml"), wait=False, name="study")
    assert done.returncode == 0, done.stdout + done.stderr
    tiny, folder = lab.shared / "runs" / "tiny", lab.shared / "runs" / "quickstart"
    wait_until(lambda: bool(checkpoints(tiny)) or status(lab, "study") in ENDED, PATIENCE, "no checkpoint", every=1)
    at_work = hosts_at_work(lab, WORKERS)
    assert len(at_work) == 2, jobs(lab, "logs", "study").stdout
    lab.kill(at_work[-1])
    wait_until(lambda: status(lab, "study") in ENDED, PATIENCE, "the study did not end", every=5)
    log = jobs(lab, "logs", "study").stdout
    assert status(lab, "study") == "SUCCEEDED", log
    assert "Traceback" not in log
    assert steps(tiny) == list(range(1, json.loads((tiny / "result.json").read_text())["steps"] + 1))
    assert json.loads((folder / "result.json").read_text())["answer"] in log
    assert (folder / "report.html").exists()
    lab.boot(at_work[-1])
    wait_until(lambda: num_nodes(lab, file) == 4, PATIENCE, "a host that came back was not joined again", every=3)


def test_a_power_cut_is_survived(cluster: tuple[Lab, Path]) -> None:
    """Catches a run that hangs, starts again from its beginning, or does steps twice when a host dies without a word."""
    lab, _ = cluster
    folder = start_training(lab, "cut")
    at_work = hosts_at_work(lab, WORKERS)
    assert len(at_work) == 2, "the workers must be on two hosts"
    done_before = checkpoints(folder)[-1]
    lab.kill(at_work[-1])
    end_of(lab, "cut", folder)
    assert done_before < RUN["train"]["max_steps"], "the run had ended before the cut"
    assert set(at_work) - {at_work[-1]} <= set(WORKERS)


def test_a_stopped_job_goes_on(cluster: tuple[Lab, Path]) -> None:
    """Catches a `ray job stop` after which the same submission begins anew, or is refused."""
    lab, _ = cluster
    folder = start_training(lab, "stopped")
    jobs(lab, "stop", "stopped")
    wait_until(lambda: status(lab, "stopped") == "STOPPED", PATIENCE, "it did not stop", every=1)
    kept = checkpoints(folder)[-1]
    assert not (folder / "result.json").exists()
    done = submit(lab, "train", str(lab.shared / "run.yaml"), "name=stopped", wait=False, name="again")
    assert done.returncode == 0, done.stderr
    end_of(lab, "again", folder)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    by_step = {record["step"]: record for record in records if "train/loss" in record}
    before, after = by_step[kept], by_step[kept + 1]
    assert "train/start_seconds" in after, "it began anew at the checkpoint"
    assert after["seconds"] > before["seconds"], "its clock went on"


def test_a_job_submitted_twice_trains_once(cluster: tuple[Lab, Path]) -> None:
    """Catches two jobs that write one run folder: the second is told who is at work, and fails with exit code 2."""
    lab, _ = cluster
    for name in ("one", "two"):
        submit(lab, "train", str(lab.shared / "run.yaml"), "name=twice", wait=False, name=name)
    wait_until(
        lambda: {status(lab, name) for name in ("one", "two")} <= set(ENDED), PATIENCE, "they did not end", every=3
    )
    (told,) = [name for name in ("one", "two") if status(lab, name) == "FAILED"]
    log = jobs(lab, "logs", told).stdout
    other = "two" if told == "one" else "one"
    assert f"`arc-ray train` (job {other}, " in log
    assert f"`ray job stop {other}`" in log
    assert "exit code 2" in jobs(lab, "status", told).stdout
    end_of(lab, other, lab.shared / "runs" / "twice")


def test_a_head_that_dies(cluster: tuple[Lab, Path]) -> None:
    """Catches a run that is locked by a driver that died with its head, or that begins anew."""
    lab, file = cluster
    folder = start_training(lab, "headless")
    lab.kill(HEAD)
    kept = checkpoints(folder)[-1]
    lab.boot(HEAD)
    lab.run("ray", "up", "-y", "--no-config-cache", str(file))
    with dashboard(lab, file):
        done = submit(lab, "train", str(lab.shared / "run.yaml"), "name=headless", wait=False, name="again-headless")
        assert done.returncode == 0, done.stderr
        log = end_of(lab, "again-headless", folder)
    assert "a sign of it" in log
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert any("train/start_seconds" in record for record in records[kept:]), "it began anew"
