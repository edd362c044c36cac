"""The file of a backup: whole, or refused with a reason."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedcombiner.client.backup import read_backup
from fedcombiner.wire.backup import PARTS, Checker, Header, Lines, NotABackup, Writer

HEADER = Header(schema=1, created_at="2026-11-24T00:00:00+00:00", software="0.1.0")
RECORDS = [{"kind": "settings", "values": {}}, {"kind": "model", "id": "m1"}, {"kind": "model", "id": "mü"}]


def a_backup(missing: list[str] | None = None) -> list[bytes]:
    writer = Writer()
    return [writer.header(HEADER), *map(writer.record, RECORDS), writer.end(missing or [])]


def check(lines: list[bytes]) -> Checker:
    checker = Checker()
    for line in lines:
        checker.take(line)
    return checker


def test_what_was_written_is_read() -> None:
    checker = Checker()
    records = [checker.take(line) for line in a_backup(["m1"])]
    assert records == [None, *RECORDS, None]
    assert checker.header == HEADER
    assert (checker.end.lines, checker.end.missing_models) == (3, ("m1",))


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ([], "empty"),
        (a_backup()[:1], "cut off"),
        (a_backup()[:-1], "cut off"),
        ([*a_backup()[:2], a_backup()[-1]], "checksum"),
        ([a_backup()[0], a_backup()[2], a_backup()[1], *a_backup()[3:]], "checksum"),
        ([*a_backup(), a_backup()[1]], "follows"),
        (a_backup()[1:], "first line"),
        ([b"\x00\x01\n"], "line 1 is not JSON"),
        ([a_backup()[0], b"[]\n"], "line 2 is not a JSON object"),
        ([a_backup()[0], b"[" * 100_000 + b"\n"], "line 2 is not JSON"),
        ([a_backup()[0], b'{"kind":"token"}\n'], "line 2 is of an unknown kind, 'token'"),
        (
            [a_backup()[0].replace(b'"version":2', b'"version":3')],
            "version 3, not 2: restore it with '0.1.0'",
        ),
        ([a_backup()[0].replace(b'"schema":1', b'"schema":"x"')], "header is damaged"),
    ],
)
def test_what_is_no_whole_backup_is_refused(lines: list[bytes], complaint: str) -> None:
    with pytest.raises(NotABackup, match=complaint):
        _ = check(lines).end


@given(st.lists(st.binary(max_size=20)))
def test_lines_are_the_same_however_they_are_cut(pieces: list[bytes]) -> None:
    lines = Lines()
    found = [line for piece in pieces for line in lines.feed(piece)]
    whole, newline, rest = b"".join(pieces).rpartition(b"\n")
    assert b"".join(found) == whole + newline
    assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in found)
    if rest:
        with pytest.raises(NotABackup, match="cut off"):
            lines.close()
    else:
        lines.close()


def test_a_file_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "state.gz"
    path.write_bytes(gzip.compress(b"".join(a_backup())))
    found = read_backup(path)
    assert found.counts == {"settings": 1, "newest": 0, "session": 0, "job": 0, "model": 2} | dict.fromkeys(
        PARTS, 0
    )


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.95])
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "state.gz"
    whole = gzip.compress(b"".join(a_backup()))
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(NotABackup):
        read_backup(path)


@pytest.mark.parametrize(
    "content",
    [b"hello", json.dumps({"a": 1}).encode(), gzip.compress(b"hello\n")],
    ids=["text", "json", "gzip"],
)
def test_another_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "state.gz"
    path.write_bytes(content)
    with pytest.raises(NotABackup):
        read_backup(path)


def test_a_backup_of_the_version_before_is_read() -> None:
    header = Header(HEADER.schema, HEADER.created_at, HEADER.software, version=1)
    writer = Writer()
    checker = check([writer.header(header), *map(writer.record, RECORDS), writer.end([])])
    assert (checker.header, checker.end.lines) == (header, 3)
