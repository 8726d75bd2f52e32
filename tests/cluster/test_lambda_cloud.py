"""The Lambda Cloud provider against a fake of its API that refuses and paces as the real one."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_lambda import FakeLambda, serve

from arc_ray.cluster import lambda_cloud
from arc_ray.cluster.lambda_cloud import LambdaCloud, LambdaCloudError, LambdaNodeProvider, read_key

LAUNCH = yaml.safe_load((Path(__file__).parents[2] / "cluster" / "lambda.yaml").read_text())
TAGS = {"ray-node-type": "worker", "ray-user-node-type": "h100", "ray-node-name": "n", "ray-launch-config": "c"}


@pytest.fixture
def account() -> FakeLambda:
    return FakeLambda()


@pytest.fixture
def provider(account: FakeLambda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LambdaNodeProvider]:
    server = serve(account, ("127.0.0.1", 0), "the-key")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("LAMBDA_API_URL", f"http://127.0.0.1:{server.server_address[1]}/api/v1")
    monkeypatch.setenv("LAMBDA_API_KEY", "the-key")
    monkeypatch.setattr(lambda_cloud, "TAG_FILE", tmp_path)
    monkeypatch.setattr(lambda_cloud, "SECONDS_BETWEEN", {"launch": 0.0, "other": 0.0})
    yield LambdaNodeProvider(LAUNCH["provider"], "arc-lambda")
    server.shutdown()
    server.server_close()


def node_config(kind: str) -> dict[str, Any]:
    return LAUNCH["available_node_types"][kind]["node_config"]


def test_every_node_type_of_the_launch_file_is_started(provider: LambdaNodeProvider, account: FakeLambda) -> None:
    """Catches a launch that Lambda refuses: unknown keys such as `quantity`, tags with characters it does not allow."""
    for kind in LAUNCH["available_node_types"]:
        provider.create_node(node_config(kind), {**TAGS, "ray-user-node-type": kind}, 1)
    assert account.refused == []
    started = {i["instance_type"]["name"] for i in account.instances.values()}
    assert started == {"gpu_1x_a10", "gpu_8x_a100_80gb_sxm4", "gpu_8x_h100_sxm5"}


def test_nodes_are_found_by_tags_also_by_another_process(provider: LambdaNodeProvider) -> None:
    """Catches tags that only the process knows that wrote them: the head must find what the laptop started."""
    provider.create_node(node_config("h100"), TAGS, 2)
    first, second = provider.non_terminated_nodes({"ray-node-type": "worker"})
    provider.set_node_tags(first, {"ray-node-status": "up-to-date"})
    other = LambdaNodeProvider(LAUNCH["provider"], "arc-lambda")
    assert other.non_terminated_nodes({"ray-node-status": "up-to-date"}) == [first]
    assert other.node_tags(second)["ray-user-node-type"] == "h100"
    assert other.internal_ip(first) != other.internal_ip(second)
    deadline = time.monotonic() + 10
    while not (other.non_terminated_nodes({}) and other.is_running(first)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    other.terminate_node(first)
    assert other.is_terminated(first)
    assert other.non_terminated_nodes({}) == [second]


def test_other_clusters_instances_are_not_touched(provider: LambdaNodeProvider) -> None:
    """Catches a `ray down` that ends a colleague's machines in the same account."""
    LambdaNodeProvider(LAUNCH["provider"], "another").create_node(node_config("h100"), TAGS, 1)
    assert provider.non_terminated_nodes({}) == []


def test_too_many_requests_are_repeated(account: FakeLambda, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a second node that never comes because its launch came within twelve seconds of the first."""
    account._between = 0.3
    server = serve(account, ("127.0.0.1", 0), "k")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    cloud = LambdaCloud(f"http://127.0.0.1:{server.server_address[1]}/api/v1", "k", {"launch": 0.1, "other": 0.0})
    body = {"region_name": "r", "instance_type_name": "t", "ssh_key_names": ["k"]}
    ids = [cloud.call(lambda_cloud.LAUNCH, body) for _ in range(2)]
    server.shutdown()
    server.server_close()
    assert len(ids) == 2
    assert account.num_throttled >= 1


def test_calls_are_paced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a provider that gets the account blocked: two launches must be their distance apart."""
    slept: list[float] = []
    monkeypatch.setattr(lambda_cloud.time, "sleep", slept.append)
    cloud = LambdaCloud("http://127.0.0.1:1", "k")
    for _ in range(2):
        cloud._wait_for_turn("launch")
    assert slept[0] == 0
    assert 11 < slept[1] <= 12


def test_a_refusal_says_what_lambda_says(provider: LambdaNodeProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches `HTTP Error 400` without its reason, and a wrong key that looks like an empty account."""
    with pytest.raises(LambdaCloudError, match="missing instance_type_name"):
        provider.create_node({"instance_type": ""}, TAGS, 1)
    monkeypatch.setenv("LAMBDA_API_KEY", "wrong")
    with pytest.raises(LambdaCloudError, match="API key was invalid"):
        LambdaNodeProvider(LAUNCH["provider"], "arc-lambda").non_terminated_nodes({})


def test_the_key_is_read_from_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a key with the blanks around it, and a missing one that is found out only by a refused call."""
    monkeypatch.delenv("LAMBDA_API_KEY", raising=False)
    (tmp_path / "keys").write_text("# mine\n api_key =  abc_1 \n")
    assert read_key(tmp_path / "keys") == "abc_1"
    with pytest.raises(LambdaCloudError, match="no API key"):
        read_key(tmp_path / "none")
