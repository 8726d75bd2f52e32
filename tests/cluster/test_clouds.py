"""AWS, Google Cloud and Lambda Cloud to the end: the launch files against fakes of the APIs, whose instances boot as hosts.

`ray up`, a job whose GPUs make a worker appear, the idle worker's end, `ray down`. The autoscaler is Ray's own, on the head.
"""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from fake_ec2 import fake_ec2
from fake_lambda import fake_lambda
from lab import NET, Lab, laboratory, missing, wait_until
from places import DASHBOARD, brought_up, fitted, jobs, submit

from arc_ray.runs.obtain import obtain

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(missing()), reason=missing() or "possible here")]

JOB = """
import json, ray
ray.init(log_to_driver=False)

@ray.remote(num_cpus=1)
def here():
    context = ray.get_runtime_context()
    node = next(n for n in ray.nodes() if n["NodeID"] == context.get_node_id())
    return {"gpus": len(ray.get_gpu_ids()), "role": node["Labels"].get("arc-ray-role"), "address": node["NodeManagerAddress"]}

wanted = {"train": here.options(num_gpus=8, accelerator_type="H100")}
if DATA:
    wanted["data"] = here.options(label_selector={"arc-ray-role": "data"})
print("RESULT " + json.dumps(dict(zip(wanted, ray.get([task.remote() for task in wanted.values()])))))
"""
"""Asks for a whole H100 machine, and for a data node."""


def run_job(lab: Lab, has_data_nodes: bool) -> dict[str, Any]:
    script = lab.shared / "ask.py"
    script.write_text(JOB.replace("DATA", str(has_data_nodes)))
    done = jobs(lab, "submit", "--", "python", str(script), check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    return json.loads(line.removeprefix("RESULT "))


def expect_gpus(lab: Lab) -> None:
    """See that the documented study finds its model and will ask for GPUs, though no node with GPUs is up."""
    storage = str(lab.shared / "runs")
    obtain("smollm2", storage)
    done = submit(lab, "study", "configs/smollm2.yaml", f"storage={storage}", "--dry-run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "runs on GPUs, 1 worker a trial with a GPU each, in bfloat16" in done.stdout


def test_aws() -> None:
    """Catches a node type that Ray cannot start, spot that is not asked for, and instances that stay after use."""
    if importlib.util.find_spec("moto") is None:
        pytest.skip("moto is not installed: pip install '.[cluster-tests]'")
    with laboratory() as lab, fake_ec2(lab) as account:
        lab.run("python", "-m", "arc_ray.cluster.aws_setup")
        changes = {"provider": {"use_internal_ips": True}, "idle_timeout_minutes": 0.5}
        with brought_up(lab, fitted("aws", lab, changes)):
            assert list(account.live.values()) == ["m7i.2xlarge"]
            stranger = lab.run(
                "env", "RAY_AUTH_MODE=disabled", "ray", "job", "list", "--address", DASHBOARD, check=False
            )
            assert "nauthorized" in stranger.stdout + stranger.stderr
            expect_gpus(lab)
            found = run_job(lab, has_data_nodes=True)
            assert found["train"]["gpus"] == 8
            assert found["train"]["role"] == "train"
            assert found["data"]["role"] == "data"
            started = {i["InstanceType"]: i for i in account.started}
            assert started.keys() == {"m7i.2xlarge", "c7i.8xlarge", "p5.48xlarge"}
            assert started["p5.48xlarge"]["InstanceLifecycle"] == "spot"
            assert started["p5.48xlarge"]["IamInstanceProfile"]["Arn"].endswith("/arc-ray")
            assert "InstanceLifecycle" not in started["c7i.8xlarge"]
            wait_until(lambda: len(account.live) == 1, 180, f"idle workers stay: {account.live}", every=1)
        wait_until(lambda: not account.live, 30, f"`ray down` leaves {account.live}", every=1)
    assert lab.names_left() == []


def test_google_cloud() -> None:
    """Catches bodies that Google refuses, GPU types that never start, and a launcher that sets a working node up again."""
    if importlib.util.find_spec("googleapiclient") is None:
        pytest.skip("Google's client is not installed: pip install '.[gcp]'")
    from fake_google_cloud import fake_google

    with laboratory() as lab, fake_google(lab) as project:
        changes = {"provider": {"use_internal_ips": True, "project_id": "testing"}, "idle_timeout_minutes": 0.5}
        with brought_up(lab, fitted("gcp", lab, changes)):
            expect_gpus(lab)
            found = run_job(lab, has_data_nodes=True)
            assert found["train"]["gpus"] == 8
            assert found["train"]["role"] == "train"
            assert found["data"]["role"] == "data"
            assert project.refused == []
            kinds = {i["machineType"].rsplit("/", 1)[-1]: i for i in project.started}
            assert kinds.keys() == {"n2-standard-8", "n2-standard-32", "a3-highgpu-8g"}
            assert len(project.started) == 3, "a working node was set up again"
            assert kinds["a3-highgpu-8g"]["scheduling"]["provisioningModel"] == "SPOT"
            wait_until(
                lambda: len(project.instances) == 1, 180, f"idle workers stay: {list(project.instances)}", every=1
            )
        wait_until(lambda: not project.instances, 30, f"`ray down` leaves {list(project.instances)}", every=1)
    assert lab.names_left() == []


def test_lambda_cloud() -> None:
    """Catches a provider that works alone but not in Ray's hands: on the laptop for the head, on the head for workers."""
    with laboratory() as lab, fake_lambda(lab) as account:
        changes = {"auth": {"ssh_private_key": str(lab.key)}, "idle_timeout_minutes": 0.5}
        with brought_up(lab, fitted("lambda", lab, changes)):
            expect_gpus(lab)
            assert run_job(lab, has_data_nodes=False)["train"]["gpus"] == 8
            assert account.refused == []
            types = {i["instance_type"]["name"] for i in account.instances.values()}
            assert types == {"gpu_1x_a10", "gpu_8x_h100_sxm5"}
            wait_until(lambda: len(account.instances) == 1, 240, "the idle worker stays", every=1)
        wait_until(lambda: not account.instances, 60, f"`ray down` leaves {account.instances}", every=1)
    assert lab.names_left() == []


def test_vast() -> None:
    """Catches a host on another port than 22 that `ray up` cannot reach, and a head without its work."""
    with laboratory() as lab:
        lab.boot(11, port=22022)
        changes = {"provider": {"head_ip": f"{NET}.11"}, "auth": {"ssh_private_key": str(lab.key)}}
        with brought_up(lab, fitted("vast", lab, changes)):
            script = lab.shared / "cpus.py"
            script.write_text(
                "import ray; ray.init(log_to_driver=False); print('CPUS', int(ray.cluster_resources()['CPU']))"
            )
            done = jobs(lab, "submit", "--", "python", str(script))
            assert "CPUS" in done.stdout
        wait_until(lambda: not lab.ray_processes(11), 60, f"left: {lab.ray_processes(11)}", every=1)
    assert lab.names_left() == []


def test_wrong_key_is_told(tmp_path: Path) -> None:
    """Catches an account whose key is refused by a trace of Ray's launcher that does not say so."""
    with laboratory() as lab, fake_lambda(lab):
        file = fitted("lambda", lab, {"auth": {"ssh_private_key": str(lab.key)}})
        lab.run("ray", "get-auth-token", "--generate")
        lab.environment["LAMBDA_API_KEY"] = "wrong"
        done = lab.run("ray", "up", "-y", "--no-config-cache", str(file), check=False)
        assert done.returncode != 0
        assert "API key was invalid" in done.stdout + done.stderr
