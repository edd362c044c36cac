"""S3 servers for tests: moto in this process, and MinIO as a child where its binary is."""

import io
import itertools
import os
import shutil
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import urllib3
from minio import Minio
from minio.error import S3Error

from fedcombiner.modelstorage.minio import MinioStore
from fedcombiner.modelstorage.s3.bucket import S3Location, connect
from tests.contract.store_kit import Home

DEADLINE_S = 30.0
ROOT_USER = "root-user"
ROOT_SECRET = "root@:/%41# ?+&s"
_BUCKETS = itertools.count(1)


def minio_binary() -> str | None:
    """MinIO's server, by MINIO_BINARY or on the PATH."""
    return os.environ.get("MINIO_BINARY") or shutil.which("minio")


class MinioServer:
    """A MinIO that keeps its port and its data when it is killed and started again."""

    def __init__(self) -> None:
        self._dir = Path(tempfile.mkdtemp(prefix="fc-test-minio-"))
        self._address, self._console = _free_address(), _free_address()
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"http://{self._address}"

    def start(self) -> None:
        binary = minio_binary()
        assert binary is not None
        addresses = ("--address", self._address, "--console-address", self._console)
        self._process = subprocess.Popen(
            [binary, "server", "--quiet", *addresses, str(self._dir)],
            env={
                **os.environ,
                "MINIO_ROOT_USER": ROOT_USER,
                "MINIO_ROOT_PASSWORD": ROOT_SECRET,
                "MINIO_BROWSER": "off",
            },
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + DEADLINE_S
        while not self._is_ready():
            assert time.monotonic() < deadline, "MinIO did not start"
            time.sleep(0.02)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self._dir)

    def _is_ready(self) -> bool:
        # Its own health check says yes before it takes requests.
        root = connect(S3Location(self.url, "", ROOT_USER, ROOT_SECRET))
        try:
            root.list_buckets()
        except (urllib3.exceptions.HTTPError, S3Error):
            return False
        return True


@dataclass(frozen=True)
class Place:
    """A bucket of one test, `location` as root."""

    location: S3Location
    client: Minio

    def home(self, scratch: Path) -> Home:
        return Home(lambda: self.store(scratch), self.stored)

    def store(self, scratch: Path, *, patience: float = 5.0, **changes: str) -> MinioStore:
        return MinioStore(replace(self.location, **changes), scratch, patience=patience)

    def stored(self) -> list[str]:
        """The names of all objects and unfinished uploads but the probe's."""
        bucket = self.location.bucket
        names = [str(entry.object_name) for entry in self.client.list_objects(bucket, recursive=True)]
        return [name for name in names if not name.startswith("probe/")] + self.unfinished()

    def overwrite(self, name: str, content: bytes) -> None:
        self.client.put_object(self.location.bucket, name, io.BytesIO(content), len(content))

    def unfinished(self) -> list[str]:
        # MinIO lists the unfinished uploads of a whole name only.
        bucket = self.location.bucket
        uploads = self.client._list_multipart_uploads(bucket).uploads
        return [f"unfinished {upload.object_name}" for upload in uploads]


def new_place(url: str) -> Place:
    """A new bucket on the server."""
    location = S3Location(url, f"bucket-{next(_BUCKETS)}", ROOT_USER, ROOT_SECRET)
    client = connect(location)
    client.make_bucket(location.bucket)
    return Place(location, client)


def _free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"
