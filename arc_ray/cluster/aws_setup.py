"""Once for an AWS account: the role and instance profile `arc-ray`, which `cluster/aws.yaml` gives to all its instances.

The head starts workers that carry the role (it must be allowed to pass it), reads the name of the newest image (SSM),
and all nodes read and write buckets. Called again, it changes nothing.
"""

import json
import sys
from typing import Any

ROLE_NAME = "arc-ray"
POLICIES = ("AmazonEC2FullAccess", "AmazonS3FullAccess", "AmazonSSMReadOnlyAccess")


def ensure_profile(iam: Any) -> str:
    """Make what is missing of the role and its instance profile; return the profile's ARN. `iam`: boto3's IAM client."""
    name, exists = ROLE_NAME, iam.exceptions.EntityAlreadyExistsException
    trust = {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}
    try:
        iam.create_role(RoleName=name, AssumeRolePolicyDocument=_policy(trust))
    except exists:
        print(f"role {name} is there already")
    for policy in POLICIES:
        iam.attach_role_policy(RoleName=name, PolicyArn=f"arn:aws:iam::aws:policy/{policy}")
    role = iam.get_role(RoleName=name)["Role"]["Arn"]
    passing = {
        "Effect": "Allow",
        "Action": ["iam:PassRole", "iam:GetInstanceProfile"],
        "Resource": [role, role.replace(":role/", ":instance-profile/")],
    }
    iam.put_role_policy(RoleName=name, PolicyName="pass-itself", PolicyDocument=_policy(passing))
    try:
        iam.create_instance_profile(InstanceProfileName=name)
    except exists:
        print(f"instance profile {name} is there already")
    profile = iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"]
    if not profile["Roles"]:
        iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
    return profile["Arn"]


def main() -> None:
    """Make role and profile with the credentials that boto3 finds, and print the profile's ARN."""
    try:
        import boto3  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        sys.exit("error: boto3 is not installed; run: pip install '.[aws]'")
    print(ensure_profile(boto3.client("iam")))


def _policy(statement: dict[str, Any]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


if __name__ == "__main__":
    main()
