"""Making a bucket ready: itself, its lifecycle rules, a user for each service. Idempotent, blocking."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Final

from minio import Minio
from minio.error import S3Error
from urllib3.exceptions import HTTPError

from fedcombiner.modelstorage.s3.bucket import S3Bucket, S3Location, passing
from fedcombiner.modelstorage.s3.errors import StoreRefused
from fedcombiner.modelstorage.s3.layout import probe_name
from fedcombiner.modelstorage.store import StoreUnavailable
from fedcombiner.storagesetup.lifecycle import UPLOAD_DAYS, set_rules
from fedcombiner.storagesetup.policies import Role, policy
from fedcombiner.storagesetup.users import NoAdminApi, UserRefused, Users

_MADE_MEANWHILE: Final = "BucketAlreadyOwnedByYou"
_WRONG_KEY: Final = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied")


class SetupFailed(Exception):
    """Says what is wrong and what to do, in one line, without secrets."""


@dataclass(frozen=True)
class User:
    """Who a service is at the object store."""

    access_key: str
    secret_key: str = field(repr=False)


@dataclass(frozen=True)
class Step:
    """One thing that is as it should be now."""

    what: str
    result: str


class StorageSetup:
    """`root` is the bucket with the credentials of an administrator.

    Raises:
        OSError, ValueError: the location cannot be one.
    """

    def __init__(self, root: S3Location, *, patience: float) -> None:
        self._root = root
        self._patience = patience
        self._bucket = S3Bucket(root, patience=patience)

    def run(self, users: Mapping[Role, User]) -> Iterator[Step]:
        """Do one step after the other, users last.

        Raises:
            SetupFailed: the server says no.
            StoreFull, StoreUnavailable: it is away.
        """
        with _explained(self._root):
            yield self._make_bucket()
            yield self._set_lifecycle()
            yield self._check_conditions()
            for role, user in users.items():
                yield self._put_user(role, user)

    def _make_bucket(self) -> Step:
        def make(client: Minio) -> bool:
            # Not bucket_exists: the answer to HEAD does not say why it is refused.
            with passing("NoSuchBucket") as missing:
                next(client.list_objects(self._root.bucket), None)
            if missing:
                with passing(_MADE_MEANWHILE):
                    client.make_bucket(self._root.bucket, location=self._root.region)
            return bool(missing)

        made = self._bucket.tried(make)
        return Step(f"bucket {self._root.bucket}", "made" if made else "was there")

    def _set_lifecycle(self) -> Step:
        whole = self._bucket.tried(lambda client: set_rules(client, self._root.bucket))
        result = f"uploads expire after {UPLOAD_DAYS} days, unfinished ones after a day"
        return Step("lifecycle", result if whole else f"{result} by the server's own rule")

    def _check_conditions(self) -> Step:
        name = probe_name(self._root.access_key)
        self._bucket.probe(name)
        self._bucket.check_conditions(name)
        missing = "not known: of simultaneous writers of one id the last may win"
        return Step("If-None-Match", "known" if self._bucket.conditional else missing)

    def _put_user(self, role: Role, user: User) -> Step:
        name = f"{self._root.bucket}-{role}"
        document = policy(role, self._root.bucket, user.access_key)
        Users(self._root).put(user.access_key, user.secret_key, name, document)
        self._try_out(user)
        return Step(f"user {user.access_key}", f"has policy {name}")

    def _try_out(self, user: User) -> None:
        location = replace(self._root, access_key=user.access_key, secret_key=user.secret_key)
        S3Bucket(location, patience=self._patience).probe(probe_name(user.access_key))


@contextmanager
def _explained(root: S3Location) -> Iterator[None]:
    try:
        yield
    except NoAdminApi as error:
        raise SetupFailed(
            f"{root.url} is no MinIO and has its users elsewhere: say --no-users here, and make them there"
            " with the policies that `combiner storage policy` prints"
        ) from error
    except UserRefused as error:
        raise SetupFailed(str(error)) from error
    except StoreRefused as error:
        cause = error.__cause__
        if isinstance(cause, S3Error) and cause.code in _WRONG_KEY:
            keys = "MINIO_ROOT_USER and MINIO_ROOT_PASSWORD"
            raise SetupFailed(f"{keys} are not an administrator's at {root.url} ({cause.code})") from error
        raise SetupFailed(error.message) from error
    except HTTPError as error:
        raise StoreUnavailable("the object store does not answer") from error
