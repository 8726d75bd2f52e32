"""The role of AWS nodes, made against moto's fake of IAM."""

import json
from typing import Any

import pytest

from arc_ray.cluster.aws_setup import POLICIES, ROLE_NAME, ensure_profile


def test_the_role_is_made_once_and_may_pass_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a head that cannot give workers their role, and a second call that fails or makes a second one."""
    moto = pytest.importorskip("moto", reason="moto is not installed: pip install '.[cluster-tests]'")
    import boto3

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    with moto.mock_aws(config={"iam": {"load_aws_managed_policies": True}}):
        iam: Any = boto3.client("iam", region_name="us-west-2")
        first = ensure_profile(iam)
        assert ensure_profile(iam) == first
        attached = iam.list_attached_role_policies(RoleName=ROLE_NAME)["AttachedPolicies"]
        assert {policy["PolicyName"] for policy in attached} == set(POLICIES)
        own = iam.get_role_policy(RoleName=ROLE_NAME, PolicyName="pass-itself")["PolicyDocument"]
        own = json.loads(own) if isinstance(own, str) else own
        role = iam.get_role(RoleName=ROLE_NAME)["Role"]["Arn"]
        assert "iam:PassRole" in own["Statement"][0]["Action"]
        assert role in own["Statement"][0]["Resource"]
        (profile,) = iam.list_instance_profiles()["InstanceProfiles"]
        assert [r["RoleName"] for r in profile["Roles"]] == [ROLE_NAME]
