"""Users of real servers who may do what config/policies/ allows, and nothing else."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
from minio import Minio, MinioAdmin
from minio.credentials.providers import StaticProvider

from scripts.local_servers import REGION, Gateway, S3Server, SeaweedFS

POLICIES = Path(__file__).resolve().parent.parent / "config" / "policies"
Policy = dict[str, Any]


@dataclass(frozen=True)
class User:
    """The keys of somebody who is no administrator."""

    access_key: str
    secret_key: str = ""

    def variables(self, prefix: str) -> dict[str, str]:
        """As settings of the service; `prefix` is MINIO or FILEBASE."""
        return {f"{prefix}_ACCESS_KEY": self.access_key, f"{prefix}_SECRET_KEY": self.secret_key}

    def client(self, server: S3Server, *, region: str | None = REGION) -> Minio:
        """A client with these keys; without a region it asks for that of each bucket."""
        return Minio(
            endpoint=urlsplit(server.endpoint).netloc,
            access_key=self.access_key,
            secret_key=self.secret_key,
            secure=False,
            region=region,
        )


def policy(name: str, bucket: str, *, without: str = "") -> Policy:
    """A file of config/policies/, filled in as its users do; `without` one of its actions."""
    found: Policy = json.loads((POLICIES / f"{name}.json").read_text().replace("BUCKET", bucket))
    for statement in found["Statement"]:
        statement["Action"] = [action for action in statement["Action"] if action != without]
    found["Statement"] = [statement for statement in found["Statement"] if statement["Action"]]
    return found


def merged(*policies: Policy) -> Policy:
    """One policy that allows what each of these does."""
    return {**policies[0], "Statement": [each for one in policies for each in one["Statement"]]}


def admin_of(gateway: Gateway, user: User | None = None) -> MinioAdmin:
    """MinIO's administration, as its administrator or as a user."""
    keys = user or User(gateway.access_key, gateway.secret_key)
    provider = StaticProvider(access_key=keys.access_key, secret_key=keys.secret_key)
    return MinioAdmin(endpoint=urlsplit(gateway.endpoint).netloc, credentials=provider, secure=False)


def add_minio_user(gateway: Gateway, name: str, granted: Policy) -> User:
    """Makes a user of MinIO with one policy."""
    user = User(name, f"{name}-secret")
    admin_of(gateway).user_add(access_key=user.access_key, secret_key=user.secret_key)
    grant_minio_user(gateway, user, granted)
    return user


def grant_minio_user(gateway: Gateway, user: User, granted: Policy) -> None:
    """Gives the user this policy instead of the one it had."""
    admin = admin_of(gateway)
    admin.policy_add(policy_name=user.access_key, policy=granted)
    admin.policy_set(policy_name=user.access_key, user=user.access_key)


def add_seaweed_user(server: SeaweedFS, name: str, *granted: Policy) -> User:
    """Makes a user of SeaweedFS by AWS' own API for users, with these policies."""
    iam = _iam(server)
    iam.create_user(UserName=name)
    made = iam.create_access_key(UserName=name)["AccessKey"]
    for number, each in enumerate(granted):
        made_policy = iam.create_policy(PolicyName=f"{name}-{number}", PolicyDocument=json.dumps(each))
        iam.attach_user_policy(UserName=name, PolicyArn=made_policy["Policy"]["Arn"])
    return User(made["AccessKeyId"], made["SecretAccessKey"])


def _iam(server: SeaweedFS) -> Any:
    return boto3.client(
        "iam",
        endpoint_url=server.endpoint,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        region_name=REGION,
    )
