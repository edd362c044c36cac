"""A way to an S3 server on which things go wrong, as scripted."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

import urllib3

Trouble = Literal["lose", "cut"] | tuple[int, str] | threading.Event | None
"""What becomes of a request: its answer is lost, or cut in the middle; or it is answered with a status and an
S3 code, and not passed on; or it waits for an event first."""

Script = Callable[["Asked"], Trouble]


@dataclass(frozen=True)
class Asked:
    """One request; `again` counts those that were the same before it."""

    method: str
    path: str
    conditional: bool
    again: int


@dataclass
class Proxy:
    url: str
    script: Script
    asked: list[Asked] = field(default_factory=list)


@contextmanager
def proxy_to(url: str, script: Script = lambda _asked: None) -> Iterator[Proxy]:
    """A proxy before the server at `url`; its `script` may be changed at any time."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    proxy = Proxy(f"http://127.0.0.1:{server.server_port}", script)
    server.proxy, server.upstream = proxy, url  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield proxy
    server.shutdown()
    server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle_one(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        trouble = self._trouble()
        if isinstance(trouble, threading.Event):
            trouble.wait(60)
        if isinstance(trouble, tuple):
            self._refuse(*trouble)
            return
        answer = urllib3.request(
            self.command,
            self.server.upstream + self.path,  # type: ignore[attr-defined]
            body=body,
            headers=dict(self.headers.items()),
            retries=False,
            redirect=False,
            decode_content=False,
        )
        if trouble == "lose":
            self.close_connection = True
            return
        self._pass_on(answer, cut=trouble == "cut")

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_one

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _trouble(self) -> Trouble:
        proxy: Proxy = self.server.proxy  # type: ignore[attr-defined]
        conditional = "If-None-Match" in self.headers
        again = len([a for a in proxy.asked if (a.method, a.path) == (self.command, self.path)])
        asked = Asked(self.command, self.path, conditional, again)
        proxy.asked.append(asked)
        return proxy.script(asked)

    def _refuse(self, status: int, code: str) -> None:
        body = f"<Error><Code>{code}</Code><Message>as scripted</Message></Error>".encode()
        kind = "application/xml" if code else "text/html"
        self._head(status, {"Content-Type": kind, "Content-Length": str(len(body))})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _pass_on(self, answer: urllib3.BaseHTTPResponse, *, cut: bool) -> None:
        dropped = ("connection", "transfer-encoding", "content-length", "date", "server")
        headers = {name: value for name, value in answer.headers.items() if name.lower() not in dropped}
        length = answer.headers.get("Content-Length", str(len(answer.data)))
        self._head(answer.status, {**headers, "Content-Length": length})
        if self.command == "HEAD":
            return
        self.wfile.write(answer.data[: len(answer.data) // 2] if cut else answer.data)
        self.close_connection = self.close_connection or cut

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
