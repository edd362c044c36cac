"""`combiner package` against a discovery in the test's loop."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from typer.testing import Result

from fedcombiner.client.packages import PackagesClient
from fedcombiner.servicekit.errors import InvalidArgument
from fedcombiner.servicekit.http import HttpServer
from tests.packages_kit import FILES, archive, archive_of
from tests.rpc import cli_kit
from tests.rpc.discovery_kit import Discovery
from tests.rpc.test_discovery_pairs import discovering
from tests.tls_kit import Certificates

DEADLINE = 30.0


@pytest.fixture
async def discovery(tmp_path: Path) -> AsyncIterator[Discovery]:
    async with Discovery(tmp_path / "discovery").running() as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A package's folder, as a person has it."""
    for name, data in FILES.items():
        path = tmp_path / "mnist" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "mnist"


async def run(url: str, *words: str, **environment: str) -> Result:
    """`combiner package WORDS` against this discovery."""
    with capture_logs():  # of the discovery, which is in this process
        return await cli_kit.invoke("package", *words, "--discovery", url, deadline=DEADLINE, **environment)


async def rows(url: str, *words: str) -> list[dict[str, Any]]:
    return cli_kit.printed(await run(url, *words, "--json"))


async def test_a_folder_is_put_and_given_to_clients(discovery: Discovery, folder: Path) -> None:
    (row,) = await rows(discovery.url, "put", str(folder))
    assert (row["name"], row["active"]) == ("mnist", True)
    given = (await discovery.http.get("/download_package")).content
    assert hashlib.sha256(given).hexdigest() == row["id"]
    assert await rows(discovery.url, "put", str(folder / "client"), "--name", "other") == [row], "the same"
    table = (await run(discovery.url, "list")).stdout
    assert row["id"] in table
    assert "mnist" in table


async def test_archives_are_put_and_got_back(discovery: Discovery, tmp_path: Path) -> None:
    made = archive(tmp_path / "first.tar.gz")
    (first,) = await rows(discovery.url, "put", str(made), "--no-activate")
    assert (first["name"], first["active"], first["size"]) == ("first", False, made.stat().st_size)
    with zipfile.ZipFile(tmp_path / "second.zip", "w") as zipped:
        for name, data in FILES.items():
            zipped.writestr(name, data + b"# another\n")
    (second,) = await rows(discovery.url, "put", str(tmp_path / "second.zip"))
    assert [(row["name"], row["active"]) for row in await rows(discovery.url, "list")] == [
        ("first", False),
        ("second", True),
    ]
    target = tmp_path / "got.tgz"
    assert await rows(discovery.url, "get", str(target), "first") == [first]
    assert target.read_bytes() == made.read_bytes()
    (active,) = await rows(discovery.url, "activate", first["id"][:6])
    assert active == {**first, "active": True}
    assert not [
        row for row in await rows(discovery.url, "list") if row["active"] and row["id"] == second["id"]
    ]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"text", "is no compute package: the archive is no tar.gz"),
        (b"PK\x03\x04nonsense", "is no readable zip"),
        (archive_of(b"x")[:50], "is no readable tar.gz"),
    ],
    ids=range(3),
)
async def test_what_is_no_package_is_not_sent(
    discovery: Discovery, tmp_path: Path, content: bytes, says: str
) -> None:
    path = tmp_path / "p.tgz"
    path.write_bytes(content)
    result = await run(discovery.url, "put", str(path))
    assert (result.exit_code, result.stdout) == (2, "")
    assert says in result.stderr
    assert await rows(discovery.url, "list") == []


async def test_refusals_are_one_sentence(discovery: Discovery, folder: Path, tmp_path: Path) -> None:
    for words, says in (
        (("activate", "nothing"), "there is no package 'nothing'"),
        (("activate", "../x"), "package: '../x' is not valid; allowed: a name, or six or more"),
        (("get", str(tmp_path / "x.tgz"), "nothing"), "there is no package 'nothing'"),
        (("get", str(tmp_path / "none" / "x.tgz"), "nothing"), "No such file or directory"),
        (("put", str(folder), "--name", "a b"), "name: 'a b' is not valid; allowed: 1 to 64 letters"),
    ):
        result = await run(discovery.url, *words)
        assert (result.exit_code, result.stdout) == (2, "")
        assert says in result.stderr
    assert not list(tmp_path.glob("*.tgz"))
    assert (await run(discovery.url, "list")).stdout == "No package yet: `combiner package put DIR`.\n"


async def test_the_discovery_says_how_large_a_package_may_be(tmp_path: Path, folder: Path) -> None:
    async with Discovery(tmp_path / "discovery", max_package_bytes=10).running() as discovery:
        result = await run(discovery.url, "put", str(folder))
    assert result.exit_code == 2
    assert "the archive is larger than 10 bytes" in result.stderr


async def test_nobody_answers() -> None:
    result = await run("http://127.0.0.1:1", "list")
    assert result.exit_code == 3
    assert "--discovery or COMBINER_DISCOVERY names another one" in result.stderr


@pytest.mark.parametrize("url", ["localhost:8092", "ftp://x", "http://"])
async def test_what_is_no_url(url: str) -> None:
    result = await run(url, "list")
    assert result.exit_code == 2
    assert "allowed: an http or https URL such as http://localhost:8092" in result.stderr
    with pytest.raises(InvalidArgument):
        PackagesClient(url)


async def test_something_else_answers() -> None:
    async def page(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"<html>hello</html>"})

    server = HttpServer(page, "127.0.0.1", 0)
    await server.start()
    result = await run(f"http://127.0.0.1:{server.port}", "list")
    await server.stop()
    assert result.exit_code == 2
    assert "is no discovery of this stack" in result.stderr


async def test_over_https_with_a_token(tmp_path: Path, certificates: Certificates, folder: Path) -> None:
    async with discovering(tmp_path, certificates, None) as url:
        ca = ("--ca", str(certificates.ca))
        put = await run(url, "put", str(folder), *ca, COMBINER_TOKEN="fct_controller")
        assert put.exit_code == 0, put.stderr
        for token, says in (("fct_client", "a token of role client may not do this"), ("fct_x", "not known")):
            refused = await run(url, "put", str(folder), *ca, COMBINER_TOKEN=token)
            assert refused.exit_code == 2
            assert says in refused.stderr
            assert token not in refused.stderr
        strange = await run(url, "list", "--ca", str(certificates.other_ca), COMBINER_TOKEN="fct_operator")
        assert strange.exit_code == 3
        assert "certificate verify failed" in strange.stderr
