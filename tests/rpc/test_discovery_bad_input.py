"""Everything wrong that can be said to a discovery: a clear answer each time, and it answers on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from discovery_mock.web import MAX_BODY_BYTES

from tests.packages_kit import FILES, archive, archive_of, entry
from tests.rpc.discovery_kit import ANNOUNCE, CLIENT, Discovery

MEGABYTE = "x" * (1 << 20)
ADD_CLIENTS = ("/add_client", "/api/v1/clients/add")


@dataclass(frozen=True)
class Bad:
    """A request, the status of its answer, and what its message must say."""

    method: str
    path: str
    status: int
    says: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


def post(path: str, status: int, says: str, body: object, **headers: str) -> Bad:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Bad(
        "POST", path, status, says, data, {name.replace("_", "-"): text for name, text in headers.items()}
    )


def announce(says: str, **changes: object) -> Bad:
    return post("/add_combiner", 400, says, {**ANNOUNCE, **changes})


def client(says: str, **changes: object) -> list[Bad]:
    return [post(path, 400, says, {**CLIENT, **changes}) for path in ADD_CLIENTS]


def get(path: str, status: int, says: str) -> Bad:
    return Bad("GET", path, status, says)


def package(says: str, body: bytes, query: str = "name=p") -> Bad:
    return post(f"/packages?{query}", 400, says, body)


BODIES = [
    (b"", "the body is not JSON"),
    (b"{", "the body is not JSON"),
    (b"\xff\xfe\x00", "the body is not JSON"),
    (b"[1, 2]", "the body is not a JSON object"),
    (b"null", "the body is not a JSON object"),
    (b'"text"', "the body is not a JSON object"),
    (b"client_id=c1&preferred_combiner=False", "the body is not JSON"),
    (b'{"a":' * 3000, "the body is not JSON"),
]
TABLE = [
    # 7.1: announcing
    announce("combiner_id cannot be '../x'; allowed: 1 to 128 letters", combiner_id="../x"),
    announce("combiner_id cannot be ''", combiner_id=""),
    announce("combiner_id cannot be 'a\\x00b'", combiner_id="a\0b"),
    announce("combiner_id cannot be None", combiner_id=None),
    announce("address cannot be 'a b'; allowed: a host name or an address", address="a b"),
    announce("address cannot be 5", address=5),
    announce("fqdn cannot be 'https://x'", fqdn="https://x"),
    announce("port cannot be '12080'; allowed: a whole number from 1 to 65535", port="12080"),
    announce("port cannot be 0", port=0),
    announce("port cannot be 65536", port=65536),
    announce("port cannot be True", port=True),
    announce("port cannot be 1.5", port=1.5),
    announce("secure_grpc cannot be 'yes'; allowed: true, false", secure_grpc="yes"),
    announce("'max_clients' is not a known key; allowed: combiner_id, address", max_clients=8),
    *(
        post("/add_combiner", 400, f"{key} is missing", {k: v for k, v in ANNOUNCE.items() if k != key})
        for key in ANNOUNCE
    ),
    post(
        "/add_combiner", 400, "combiner-active-clients cannot be '-1'", ANNOUNCE, combiner_active_clients="-1"
    ),
    post("/add_combiner", 400, "combiner-max-clients cannot be '1e9'", ANNOUNCE, combiner_max_clients="1e9"),
    *(announce(f"{key} cannot be", **{key: "x" * 10_000}) for key in ANNOUNCE),
    # 7.2: assignment, in the words of each generation
    *client("client_id cannot be 'a/b'", client_id="a/b"),
    *client("client_id cannot be 'a\\nb'", client_id="a\nb"),
    *client("client_id cannot be ['c']", client_id=["c"]),
    *client("name is missing", client_id=None),
    *client("name cannot be 'clïent'", name="clïent"),
    *client("preferred_combiner cannot be True", preferred_combiner=True),
    *client("preferred_combiner cannot be 'a b'", preferred_combiner="a b"),
    *client("package cannot be 'both'; allowed: remote, local", package="both"),
    *client("'secure' is not a known key; allowed: client_id, name", secure=True),
    get("/assign", 400, "name is missing"),
    get("/assign?name=", 400, "name cannot be ''"),
    get("/assign?name=a%2Fb", 400, "name cannot be 'a/b'"),
    get("/assign?name=a%00b", 400, "name cannot be 'a\\x00b'"),
    get("/assign?name=c&combiner=%2E%2E", 400, "combiner cannot be '..'"),
    get("/assign?name=c&token=t", 400, "'token' is not a known key; allowed: name, combiner"),
    *(post(path, 400, says, body) for path in ("/add_combiner", *ADD_CLIENTS) for body, says in BODIES),
    *(
        post(path, 413, "larger than 16384 bytes", {**CLIENT, "name": MEGABYTE})
        for path in ("/add_combiner", *ADD_CLIENTS)
    ),
    # 7.3: packages and configuration
    *(
        get(f"{path}?name=nothing", 404, "there is no package 'nothing'")
        for path in ("/context", "/download_package", "/api/v1/packages/download")
    ),
    *(
        get(f"{path}?name=..%2Fx", 404, "there is no package '../x'")
        for path in ("/checksum", "/get_package_checksum", "/api/v1/packages/checksum")
    ),
    get("/download_package?file=p", 400, "'file' is not a known key; allowed: name"),
    get("/get_client_config?checksum=maybe", 400, "checksum cannot be 'Maybe'; allowed: true, false"),
    get("/packages/nothing", 404, "there is no package 'nothing'"),
    get("/packages/%2e%2e", 404, ""),
    post("/packages/nothing/activate", 404, "there is no package 'nothing'", b""),
    package("name: '' is not valid; allowed: 1 to 64 letters", archive_of(b""), ""),
    package("name: '../x' is not valid", archive_of(b""), "name=../x"),
    package("name: 'xx", archive_of(b""), f"name={'x' * 65}"),
    package("the archive is no tar.gz", b""),
    package("the archive is no tar.gz", b"#!/bin/sh"),
    package("clients cannot unpack zip", b"PK\x03\x04....."),
    package("the archive is no readable tar.gz", archive_of(b"x")[:60]),
    # Paths and methods that nothing is at
    get("/", 404, "Not Found"),
    get("/set_package", 404, "Not Found"),
    get("/../../etc/passwd", 404, "Not Found"),
    get("/add_client", 405, "Method Not Allowed"),
    get("/add_combiner", 405, "Method Not Allowed"),
    post("/assign", 405, "Method Not Allowed", CLIENT),
    Bad("DELETE", "/packages", 405, "Method Not Allowed"),
]


@pytest.fixture
async def discovery(tmp_path: Path) -> AsyncIterator[Discovery]:
    async with Discovery(tmp_path, package="local").running() as running:
        await running.announce()
        yield running


@pytest.mark.parametrize("bad", TABLE, ids=[f"{i}-{bad.path[:40]}" for i, bad in enumerate(TABLE)])
async def test_it_is_told_what_is_wrong(discovery: Discovery, bad: Bad) -> None:
    answer = await discovery.http.request(bad.method, bad.path, content=bad.body, headers=dict(bad.headers))
    assert (answer.status_code, answer.json()["success"]) == (bad.status, False)
    message = answer.json()["message"]
    assert bad.says in message
    assert len(message) < 300
    assert message.isprintable()
    assert list(discovery.app.status()["combiners"]) == ["combiner"]  # type: ignore[call-overload]
    assert (await discovery.assign()).status_code == 200


ENTRIES = [
    (entry("/etc/x"), "is an absolute path"),
    (entry("client/../../x"), "leaves the package's folder"),
    (entry("client/x", type=b"2", linkname="/etc"), "is a link or a device"),
]


@pytest.mark.parametrize(("other", "says"), ENTRIES)
async def test_a_package_that_would_leave_its_folder(
    discovery: Discovery, tmp_path: Path, other: object, says: str
) -> None:
    data = archive(tmp_path / "p.tgz", FILES, other).read_bytes()  # type: ignore[arg-type]
    answer = await discovery.http.post("/packages", params={"name": "p"}, content=data)
    assert answer.status_code == 400
    assert says in answer.json()["message"]


RAW = [
    (b"nonsense\r\n\r\n", b"HTTP/1.1 400"),
    (b"GET / HTTP/1.1\r\n\r\n", b"HTTP/1.1 400"),
    (b"GET /" + b"x" * 100_000, b"HTTP/1.1 400"),
    (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 100_000, b"HTTP/1.1 400"),
    (b"POST /add_client HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", b"HTTP/1.1 400"),
    (b"POST /add_client HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"HTTP/1.1 400"),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b""),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"HTTP/1.1 "),
]


@pytest.mark.parametrize(("sent", "answered"), RAW, ids=range(len(RAW)))
async def test_what_is_hardly_http(discovery: Discovery, sent: bytes, answered: bytes) -> None:
    host, _, port = discovery.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(sent)
    if not answered:
        writer.write_eof()
    async with asyncio.timeout(10):
        assert (await reader.readline()).startswith(answered)
    writer.close()
    assert (await discovery.assign()).status_code == 200


async def test_a_body_that_does_not_come(discovery: Discovery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("discovery_mock.web.BODY_SECONDS", 0.05)
    host, _, port = discovery.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /add_client HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{")
    async with asyncio.timeout(10):
        assert (await reader.readline()).startswith(b"HTTP/1.1 408")
        assert b'"the body did not come within 0.05 s"' in await reader.read()
    writer.close()


async def test_a_body_that_is_too_large_is_not_read(discovery: Discovery) -> None:
    host, _, port = discovery.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /add_client HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n")
    writer.write(b" " * (MAX_BODY_BYTES + 1))
    async with asyncio.timeout(10):
        assert (await reader.readline()).startswith(b"HTTP/1.1 413")
        assert b"connection: close" in await reader.read(), "and the connection ends"
    writer.close()


async def test_a_client_that_goes_away_in_mid_sentence(discovery: Discovery) -> None:
    host, _, port = discovery.url.removeprefix("http://").partition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /packages?name=p HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n\x1f\x8b")
    await writer.drain()
    writer.transport.abort()
    assert (await discovery.assign()).status_code == 200
