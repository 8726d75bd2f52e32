"""EC2 whose instances really boot: moto's server answers the API, a lab gives every running instance a host at its address."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lab import NET, Lab, wait_until

REGION = "us-west-2"
ENDPOINT = f"http://{NET}.1:5000"
ENVIRONMENT = {
    **{"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": REGION},
    **{"AWS_ENDPOINT_URL": ENDPOINT, "AWS_EC2_METADATA_DISABLED": "true"},
    **{"MOTO_IAM_LOAD_MANAGED_POLICIES": "true", "MOTO_EC2_LOAD_DEFAULT_AMIS": "false"},
}


class FakeEC2:
    """Watches moto's instances; those that run have a host, those that end have their power cut."""

    def __init__(self, lab: Lab) -> None:
        self.started: list[dict[str, Any]] = []
        """Every instance that ever ran, as EC2 describes it."""
        self.live: dict[str, str] = {}
        """Instance id -> type, of those that run."""
        self.failure: BaseException | None = None
        self._lab, self._over = lab, threading.Event()
        self._thread = threading.Thread(target=self._guarded, daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def close(self) -> None:
        """Stop watching; a failure of the watcher is raised here."""
        self._over.set()
        self._thread.join()
        if self.failure:
            raise self.failure

    def _guarded(self) -> None:
        try:
            self._watch()
        except BaseException as error:
            self.failure = error

    def _watch(self) -> None:
        import boto3

        self._lab.enter()
        ec2 = boto3.client("ec2", region_name=REGION, endpoint_url=ENDPOINT, **_credentials())
        wait_until(lambda: _answers(ec2), 60, "moto's server does not answer")
        for subnet in ec2.describe_subnets()["Subnets"]:
            ec2.delete_subnet(SubnetId=subnet["SubnetId"])
        network = ec2.create_vpc(CidrBlock=f"{NET}.0/24")["Vpc"]["VpcId"]
        place = {"VpcId": network, "CidrBlock": f"{NET}.0/24", "AvailabilityZone": f"{REGION}a"}
        subnet = ec2.create_subnet(**place)["Subnet"]["SubnetId"]
        ec2.modify_subnet_attribute(SubnetId=subnet, MapPublicIpOnLaunch={"Value": True})
        hosts: dict[str, int] = {}
        self.is_ready = True
        while not self._over.is_set():
            reservations = ec2.describe_instances()["Reservations"]
            running = {
                i["InstanceId"]: i
                for r in reservations
                for i in r["Instances"]
                if i["State"]["Name"] in ("pending", "running")
            }
            for name in running.keys() - hosts.keys():
                hosts[name] = int(running[name]["PrivateIpAddress"].rsplit(".", 1)[1])
                self._lab.boot(hosts[name])
                self.started.append(running[name])
            for name in hosts.keys() - running.keys():
                self._lab.kill(hosts.pop(name))
            self.live = {name: instance["InstanceType"] for name, instance in running.items()}
            time.sleep(1)

    is_ready = False
    """Whether there is a network to start instances in."""


@contextmanager
def fake_ec2(lab: Lab) -> Iterator[FakeEC2]:
    """Run moto's server on the laptop and watch its instances."""
    lab.environment = {**lab.environment, **ENVIRONMENT}
    lab.bashrc += "".join(f"export {key}={value}\n" for key, value in ENVIRONMENT.items())
    with lab.running("python", "-m", "moto.server", "-H", f"{NET}.1", "-p", "5000"):
        account = FakeEC2(lab)
        account.start()
        try:
            wait_until(lambda: account.is_ready or account.failure is not None, 90, "moto's server does not answer")
            yield account
        finally:
            account.close()


def _credentials() -> dict[str, str]:
    return {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}


def _answers(ec2: Any) -> bool:
    from botocore.exceptions import EndpointConnectionError

    try:
        ec2.describe_vpcs()
    except EndpointConnectionError:
        return False
    return True
