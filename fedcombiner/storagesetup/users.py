"""Users and policies, by MinIO's admin API, which S3 itself does not have."""

import json
from collections.abc import Callable
from urllib.parse import urlsplit

from minio import MinioAdmin
from minio.credentials.providers import StaticProvider
from minio.error import MinioAdminException

from fedcombiner.modelstorage.s3.bucket import S3Location
from fedcombiner.modelstorage.s3.http import pool_manager
from fedcombiner.servicekit.errors import printable
from fedcombiner.storagesetup.policies import Policy


class NoAdminApi(Exception):
    """The server has no users that could be made this way."""


class UserRefused(Exception):
    """The server does not take a user or policy; says which and why, without secrets."""


class Users:
    """Blocking. All methods may be repeated; `root` must be an administrator.

    Raises:
        NoAdminApi, UserRefused: by all methods, as are errors of urllib3.
    """

    def __init__(self, root: S3Location) -> None:
        parts = urlsplit(root.url)
        self._admin = MinioAdmin(
            endpoint=parts.netloc,
            credentials=StaticProvider(root.access_key, root.secret_key),
            region=root.region,
            secure=parts.scheme == "https",
            http_client=pool_manager(root.ca_file),
        )

    def put(self, access_key: str, secret_key: str, policy_name: str, policy: Policy) -> None:
        """Make the user or set its secret, and give it this policy and no other."""
        admin = self._admin
        _asked(f"policy {policy_name}", lambda: admin.policy_add(policy_name, policy=dict(policy)))
        _asked(f"user {access_key}", lambda: admin.user_add(access_key, secret_key))
        _asked(f"user {access_key}", lambda: admin.policy_set(policy_name, user=access_key))


def _asked(what: str, call: Callable[[], str]) -> None:
    try:
        call()
    except MinioAdminException as error:
        answer = _answer(error)
        if answer is None:
            raise NoAdminApi from error
        raise UserRefused(f"{what}: {printable(answer)}") from error


def _answer(error: MinioAdminException) -> str | None:
    """What MinIO says in JSON; None if something else has answered."""
    try:
        return str(json.loads(error._body)["Message"])
    except (ValueError, KeyError, TypeError):
        return None
