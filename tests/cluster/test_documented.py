"""Every command of cluster/README.md and of the launch files' heads, run as it is written on the lab's laptop.

In a copy of the repository, whose launch files are filled in for the lab. The study is the documented one, of SmolLM2; what
stands after its own words makes it short.
"""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import Command, commands_in, program_of
from fake_ec2 import fake_ec2
from fake_lambda import fake_lambda
from lab import PATIENCE, ROOT, Lab, laboratory, missing, wait_until
from places import Laptop, address, num_nodes

from arc_ray.runs.obtain import find, obtain

GUIDE = ROOT / "cluster" / "README.md"
PLACES = {
    "onprem": "Your own machines",
    "vast": "Vast.ai",
    "aws": "AWS",
    "gcp": "Google Cloud",
    "lambda": "Lambda Cloud",
}
"""Launch files that are brought up here, and their sections of the guide."""

FILLED_IN: dict[str, dict[str, Any]] = {
    "vast": {"provider": {"head_ip": address(11)}},
    "aws": {"provider": {"use_internal_ips": True}},
    "gcp": {"provider": {"use_internal_ips": True}},
    "lambda": {},
}
"""What launch files are told for the lab."""

NOT_HERE = {
    "docker": "needs its daemon; the image's study is run as kuberay.yaml's entrypoint",
    "kubectl": "needs Kubernetes; the entrypoint of kuberay.yaml is run as a job",
    "make": "would run these tests",
    "sky": "needs an account; what sky.yaml runs on its nodes is run by test_sky.py",
    "vastai": "needs an account; the host that it rents is one of the lab",
}
"""Programs whose commands are not run, and why; test_launch_files.py holds their files against what reads them."""

IN_WORDS = {"arc-ray study configs/smollm2.yaml", "python -m arc_ray.cluster.spot"}
"""Commands that are only named: one for a laptop, and one that launch files give."""

lab_only = [pytest.mark.cluster, pytest.mark.skipif(bool(missing()), reason=missing() or "possible here")]


def section(title: str) -> str:
    return GUIDE.read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]


def written_for(name: str) -> list[str]:
    """List the commands for a place that are run here, those of the launch file's head and those of the guide's section."""
    head = [command.text for command in commands_in(ROOT / "cluster" / f"{name}.yaml")]
    rows = section("Is nothing left running?").splitlines()
    words = section(PLACES[name]) + "".join(r for r in rows if r.lower().startswith(f"| {PLACES[name].lower()} |"))
    of_guide = [c.text for c in commands_in(GUIDE) if c.text in words and c.text not in IN_WORDS]
    return [text for text in dict.fromkeys([*of_guide, *head]) if not is_not_here(text)]


def is_not_here(text: str) -> bool:
    return (program_of(text) or text.split()[0]) in NOT_HERE


def all_commands() -> list[Command]:
    documents = [GUIDE, *sorted((ROOT / "cluster").glob("*.yaml"))]
    return [command for document in documents for command in commands_in(document)]


def test_what_is_not_run_names_what_is_there() -> None:
    """Catches a file, a job or a container that was renamed, in the commands that only a cloud or its programs could run."""
    words = {word for command in all_commands() if is_not_here(command.text) for word in command.text.split()}
    assert [word for word in words if word.startswith("cluster/") and not (ROOT / word).exists()] == []
    job = of_kubernetes()
    [head] = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    assert {job["metadata"]["name"], head["name"]} <= words
    assert yaml.safe_load((ROOT / "cluster" / "sky.yaml").read_text())["name"] in words
    assert head["image"] in words
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {c.text.split()[1] for c in all_commands() if c.text.startswith("make ")} <= set(targets)


def test_every_command_is_run_or_said_why_not() -> None:
    """Catches a command that is documented and never run, and an excuse for a program that is no longer named."""
    written = all_commands()
    run = (
        {text for name in PLACES for text in written_for(name)}
        | {text for text, _ in WHILE_IT_RUNS}
        | {ONCE, EXPORT, ASKED}
    )
    left = [c for c in written if c.text not in run | IN_WORDS and not is_not_here(c.text)]
    assert left == []
    assert {(program_of(c.text) or c.text.split()[0]) for c in written} >= set(NOT_HERE)


ONCE, EXPORT = "ray get-auth-token --generate", "export RAY_AUTH_MODE=token"
ASKED = "export RAY_API_SERVER_ADDRESS=http://127.0.0.1:8265"
CHECK = (
    "ray job submit --address http://127.0.0.1:8265 --working-dir . -- arc-ray check configs/smollm2.yaml storage=..."
)
WHILE_IT_RUNS = (
    (CHECK, "nodes reads what the others write"),
    ("arc-ray check CONFIG --address HEAD:6379", "nodes reads what the others write"),
    ("ray job logs -f ID", "Report: "),
    ("ray job status ID", "succeeded"),
    ("ray job list", "SUCCEEDED"),
    ("ray job stop ID", ""),
    ("ray dashboard FILE", ""),
    ("ray exec FILE 'tail -n 100 /tmp/ray/session_latest/logs/monitor*'", "monitor"),
)
"""Commands of the guide that serve every place, and a word of what they answer; they are run on-premise."""


def in_order(name: str) -> list[str]:
    """Put the commands of a place in the order in which they make sense."""
    order = (
        "get-auth-token",
        "export",
        " pip ",
        "aws_setup",
        "mkdir",
        "EDITOR",
        " login ",
        " sed ",
        " up ",
        " dashboard ",
    )
    order += (" submit ", " cp ", " rsync-down ", " down ", "instances")
    commands = dict.fromkeys([ONCE, EXPORT, *written_for(name)])
    return sorted(commands, key=lambda text: next(i for i, word in enumerate(order) if word in f" {text} "))


class TestInTheLab:
    """Each place from its first command to its last."""

    pytestmark = lab_only

    def test_your_own_machines(self) -> None:
        """Catches a guide whose model, paths, options or order do not work for the one who types it."""
        with laboratory() as lab:
            lab.boot(11, 12, 13)
            hosts = {"head_ip": address(11), "worker_ips": [address(12), address(13)]}
            changes = {"provider": hosts, "auth": {"ssh_private_key": str(lab.key)}}
            laptop = Laptop(lab, str(lab.shared / "runs"))
            file = laptop.fit("onprem", changes, worker="--num-cpus=3")
            obtain("smollm2", laptop.storage)  # the lab's hosts reach no package registry
            for text, told in laptop.go_through(in_order("onprem")):
                if text.startswith("ray dashboard"):
                    wait_until(lambda: num_nodes(lab, file) == 3, PATIENCE, "the workers did not join", every=3)
                if "arc-ray study" in text:
                    assert "Report: " in told
                    while_it_runs(laptop, told)
                    assert "Report: " in laptop.run(
                        text.split(" -- ")[0] + f" -- {of_kubernetes()['spec']['entrypoint']}"
                    )
            assert (lab.checkout / "report.html").exists()
            assert f"`{LEFT}`" in GUIDE.read_text()
            for host in (11, 12, 13):
                wait_until(lambda host=host: lab.inside(host, f"{LEFT} || true").stdout == "", 120, "left", every=2)

    @pytest.mark.parametrize("name", ["vast", "aws", "gcp", "lambda"])
    def test_rented_machines(self, name: str) -> None:
        """Catches the same where nodes come when work asks for them, the storage is a bucket, or ssh has another port."""
        with laboratory() as lab, account_of(name, lab):
            key = {"auth": {"ssh_private_key": str(lab.key)}} if name in ("vast", "lambda") else {}
            laptop = Laptop(lab, str(lab.shared / "runs"))
            laptop.fit(name, FILLED_IN[name] | key)
            if name in BUCKETS:
                laptop.storage = BUCKETS[name]
                find("smollm2", None)  # the laptop has a home of its own, and reaches no package registry
                script = FILL_BUCKET.replace("BUCKET", laptop.storage)
                lab.run("env", f"XDG_CACHE_HOME={Path('~/.cache').expanduser()}", "python", "-c", script)
            else:
                obtain("smollm2", laptop.storage)
            told = dict(laptop.go_through(in_order(name)))
            assert f"Report: {laptop.storage}/smollm2/report.html" in "".join(told.values())
            assert [text for text, said in told.items() if "instances" in text and said.strip() not in ("", "[]")] == []
            fetched = lab.checkout / ("runs/smollm2" if name == "vast" else "") / "report.html"
            assert "SmolLM2" in fetched.read_text()


@contextmanager
def account_of(name: str, lab: Lab) -> Iterator[None]:
    """Be the cloud whose API a launch file calls; a rented host is there already."""
    match name:
        case "aws":
            pytest.importorskip("awscli", reason="pip install '.[cluster-tests]'")
            with fake_ec2(lab):
                yield
        case "lambda":
            with fake_lambda(lab):  # whose key is known from the file only that the guide has one write
                shutil.rmtree(lab.home / ".lambda_cloud")
                del lab.environment["LAMBDA_API_KEY"]
                lab.environment["EDITOR"] = lab.program("editor", "#!/bin/sh\necho 'api_key = testing' > $1\n")
                yield
        case "gcp":
            pytest.importorskip("googleapiclient", reason="pip install '.[gcp]'")
            from fake_google_cloud import fake_google, fake_storage

            with fake_google(lab), fake_storage(lab):
                yield
        case _:
            lab.boot(11, port=22022)
            yield


BUCKETS = {"aws": "s3://bucket/runs", "gcp": "gs://bucket/runs"}
FILL_BUCKET = """
from arc_ray.runs.obtain import obtain
if "s3" in "BUCKET":
    import boto3
    boto3.client('s3').create_bucket(Bucket='bucket', CreateBucketConfiguration={'LocationConstraint': 'us-west-2'})
obtain('smollm2', 'BUCKET')
"""
LEFT = "pgrep -a raylet"
"""What the guide has each of one's own machines asked after the end; a table's row, and no program of a place alone."""


def of_kubernetes() -> dict[str, Any]:
    """Read the job of kuberay.yaml."""
    documents = yaml.safe_load_all((ROOT / "cluster" / "kuberay.yaml").read_text())
    return next(document for document in documents if document["kind"] == "RayJob")


def while_it_runs(laptop: Laptop, told: str) -> None:
    """Run what the guide has for every place, with the job that has just ended."""
    laptop.export(ASKED)
    found = re.search(r"raysubmit_\w+", told)
    assert found is not None
    places = {"CONFIG": "configs/smollm2.yaml storage=/", "FILE": "cluster/onprem.yaml", " ID": f" {found[0]}"}
    for text, word in WHILE_IT_RUNS:
        if text == "ray dashboard FILE":
            continue  # it has been brought up
        filled = text
        for name, value in places.items():
            filled = filled.replace(name, value)
        if "HEAD" in filled:  # within the cluster's network: on the head itself
            filled = filled.replace("HEAD", address(11)).replace("storage=/", f"storage={laptop.storage}")
            done = laptop.lab.inside(11, f"cd {laptop.lab.checkout} && PYTHONPATH=. {filled}")
            assert word in done.stdout
        else:
            assert word in laptop.run(filled), filled
