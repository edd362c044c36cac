"""The requests to a bucket, without a store: what answers is made up."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from fedcombiner.modelstorage.s3.bucket import S3Bucket, S3Location


class _FirstConnectionIsNoStore(BaseHTTPRequestHandler):
    """Who keeps the first connection is told 404 for ever, as by a proxy; behind the others is a store."""

    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1  # type: ignore[attr-defined]
        self._number: int = self.server.connections  # type: ignore[attr-defined]

    def do_PUT(self) -> None:
        self.send_response(404 if self._number == 1 else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _FirstConnectionIsNoStore) as server:
        server.daemon_threads = True
        server.connections = 0  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_what_is_no_store_is_not_asked_again_over_the_same_connection(server: ThreadingHTTPServer) -> None:
    url = f"http://127.0.0.1:{server.server_address[1]}"
    bucket = S3Bucket(S3Location(url, "bucket", "user", "secret-key"), patience=10)
    bucket.put("probe", b"")
    assert server.connections == 2  # type: ignore[attr-defined]
