"""Compute packages: what is packed passes the check; what could hurt a client does not."""

from __future__ import annotations

import gzip
import hashlib
import os
import random
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedcombiner.packages.archive import PackageLimits, check_archive
from fedcombiner.packages.names import BadPackage, inner_path
from fedcombiner.packages.packing import pack
from tests.packages_kit import FILES, YAML, archive, archive_of, entry

LIMITS = PackageLimits(archive_bytes=1 << 20, unpacked_bytes=4 << 20, entries=50)


def refusal(path: Path, limits: PackageLimits = LIMITS) -> str:
    with pytest.raises(BadPackage) as caught:
        check_archive(path, limits)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300
    return str(caught.value)


def folder(path: Path, files: Mapping[str, bytes] = FILES) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def unpacked(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {info.name: tar.extractfile(info).read() for info in tar if info.isfile()}  # type: ignore[union-attr]


@pytest.mark.parametrize("prefix", ["", "./"])
def test_a_package_as_tar_makes_it(tmp_path: Path, prefix: str) -> None:
    folders = [entry(f"{prefix}client/", type=tarfile.DIRTYPE), entry(f"{prefix}.", type=tarfile.DIRTYPE)]
    files = {f"{prefix}{name}": data for name, data in FILES.items()}
    check_archive(archive(tmp_path / "p.tgz", files, *folders), LIMITS)


OTHERS = [
    (entry("/etc/passwd"), "'/etc/passwd' is an absolute path"),
    (entry("C:/x"), "'C:/x' is an absolute path"),
    (entry("client/../../x"), "leaves the package's folder"),
    (entry(".."), "leaves the package's folder"),
    (entry("client\\..\\x"), "backslash"),
    (entry("client/a\nb"), "cannot be printed"),
    (entry("client/" + "x" * 256), "is too long"),
    (entry("client/" + "x/" * 600), "is too long"),
    (entry("client/link", type=tarfile.SYMTYPE, linkname="/etc"), "is a link or a device"),
    (entry("client/link", type=tarfile.LNKTYPE, linkname="client/train.py"), "is a link or a device"),
    (entry("client/pipe", type=tarfile.FIFOTYPE), "is a link or a device"),
    (entry("client/null", type=tarfile.CHRTYPE), "is a link or a device"),
    (entry("client/sda", type=tarfile.BLKTYPE), "is a link or a device"),
    (entry("client/run", mode=0o4755), "another user"),
    (entry("client/train.py"), "'client/train.py' is there twice"),
    (entry("./client//train.py"), "'client/train.py' is there twice"),
    (entry("client/train.py/x"), "'client/train.py' is both a file and a folder"),
    (entry("client"), "'client' is both a file and a folder"),
    (entry("client/big", 5 << 20), "more than 4194304 bytes"),
    (entry("client/link", 5 << 20, type=tarfile.SYMTYPE), "more than 4194304 bytes"),
]


@pytest.mark.parametrize(("other", "reason"), OTHERS, ids=range(len(OTHERS)))
def test_an_entry_that_could_hurt_a_client(tmp_path: Path, other: tarfile.TarInfo, reason: str) -> None:
    assert reason in refusal(archive(tmp_path / "p.tgz", FILES, other))


CONTENTS = [
    ({"client/train.py": b"x"}, "the archive has no client/fedn.yaml"),
    ({"fedn.yaml": YAML}, "fedn.yaml is there, but not in that folder"),
    ({"client/fedn.yaml": b""}, "names no entry_points"),
    ({"client/fedn.yaml": b"\xff\xfe"}, "is not text in UTF-8"),
    ({"client/fedn.yaml": YAML + b"#" * (64 << 10)}, "allowed: 65536"),
    ({**FILES, **{f"client/{i}": b"" for i in range(50)}}, "more than 50 entries"),
]


@pytest.mark.parametrize(("files", "reason"), CONTENTS, ids=range(len(CONTENTS)))
def test_what_a_package_must_hold(tmp_path: Path, files: Mapping[str, bytes], reason: str) -> None:
    assert reason in refusal(archive(tmp_path / "p.tgz", files))


def spoiled(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(change(path.read_bytes())) and None  # type: ignore[func-returns-value]


BYTES = [
    (lambda data: b"", "no tar.gz"),
    (lambda data: b"hello, this is no archive", "no tar.gz"),
    (gzip.decompress, "no tar.gz"),
    (lambda data: b"PK\x03\x04" + data, "clients cannot unpack zip"),
    (lambda data: data[:100], "no readable tar.gz"),
    (lambda data: data[:12] + b"\0\0\0" + data[15:], "no readable"),
    (lambda data: data[:2] + b"\7" + data[3:], "no readable tar.gz: Unknown compression method"),
    (lambda data: data[:-8] + b"\0" * 8, "no readable tar.gz: CRC check failed"),
    (lambda data: data[:-4], "no readable tar.gz"),
    (lambda data: gzip.compress(b"text, not a tar" * 100), "no readable tar.gz"),
    (lambda data: gzip.compress(b""), "no readable tar.gz"),
    (lambda data: random.Random(1).randbytes(2 << 20), "allowed: 1048576"),
]


@pytest.mark.parametrize(("change", "reason"), BYTES, ids=range(len(BYTES)))
def test_bytes_that_are_no_archive(tmp_path: Path, change: Callable[[bytes], bytes], reason: str) -> None:
    path = archive(tmp_path / "p.tgz")
    spoiled(change)(path)
    assert reason in refusal(path)


def bomb(path: Path, kind: bytes, says: int, has: int) -> Path:
    """A small archive whose first entry says that it has a lot of bytes, and unpacks to nearly as many."""
    with gzip.open(path, "wb", compresslevel=1) as zipped:
        zipped.write(entry("client/zeros", says, type=kind).tobuf())
        for _ in range(has >> 20):
            zipped.write(bytes(1 << 20))
    return path


def test_a_bomb_costs_neither_memory_nor_time(tmp_path: Path) -> None:
    script = (
        "import sys, resource; from pathlib import Path\n"
        "resource.setrlimit(resource.RLIMIT_AS, (600 << 20, 600 << 20))\n"
        "from fedcombiner.packages.archive import PackageLimits, check_archive\n"
        "from fedcombiner.packages.names import BadPackage\n"
        "for path in sys.argv[1:]:\n"
        "    try: check_archive(Path(path), PackageLimits())\n"
        "    except BadPackage as error: print(error)\n"
    )
    bombs = [
        bomb(tmp_path / "h.tgz", tarfile.XHDTYPE, 1 << 30, 128 << 20),
        bomb(tmp_path / "f.tgz", tarfile.REGTYPE, 2 << 30, 128 << 20),
    ]
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, bombs)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=60,
    )
    assert done.stdout.splitlines() == [
        "the archive has headers larger than any package needs",
        "the files have more than 1073741824 bytes together",
    ], done.stderr


TAR = gzip.decompress(archive_of(b"print(1)"))
CHANGES = st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=12)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(changes=CHANGES, cut=st.integers(0, len(TAR)))
def test_no_bytes_break_the_check(tmp_path: Path, changes: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(TAR)
    for position, byte in changes:
        data[position] = byte
    path = tmp_path / "p.tgz"
    for tar in (data, data[:cut]):
        path.write_bytes(gzip.compress(tar, 1))
        with suppress(BadPackage):
            check_archive(path, LIMITS)


@given(st.text(st.sampled_from("a./\\:.é\n\0 "), max_size=20))
def test_no_name_leaves_the_folder(name: str) -> None:
    try:
        path = inner_path(name)
    except BadPackage:
        return
    assert not path.is_absolute()
    assert ".." not in path.parts


@pytest.mark.parametrize("inner", [True, False])
def test_a_folder_is_packed_the_same_whoever_does_it(tmp_path: Path, inner: bool) -> None:
    source = folder(tmp_path / "source", {**FILES, "client/sub/b.py": b"b", "client/__pycache__/x.pyc": b"x"})
    (source / "client/train.py").chmod(0o755)
    first = pack(source / "client" if inner else source, tmp_path / "first.tgz", LIMITS)
    os.utime(source / "client/train.py", (1, 1))
    second = pack(source, tmp_path / "second.tgz", LIMITS)
    assert first.read_bytes() == second.read_bytes()
    check_archive(first, LIMITS)
    assert unpacked(first) == {**FILES, "client/sub/b.py": b"b"}
    with tarfile.open(first) as tar:
        assert {info.name: info.mode for info in tar}["client/train.py"] == 0o755


def test_a_folder_with_a_link_is_refused(tmp_path: Path) -> None:
    source = folder(tmp_path / "source")
    (source / "client/link").symlink_to("/etc")
    with pytest.raises(BadPackage, match="client/link is a link or a device"):
        pack(source, tmp_path / "p.tgz", LIMITS)


def test_a_folder_without_a_description_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadPackage, match=r"has no fedn\.yaml, nor has"):
        pack(folder(tmp_path / "source", {"x/train.py": b""}), tmp_path / "p.tgz", LIMITS)


def test_a_tar_gz_stays_as_it_is(tmp_path: Path) -> None:
    path = archive(tmp_path / "given.tar.gz")
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    assert pack(path, tmp_path / "p.tgz", LIMITS) == path
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before


def zipped(path: Path, files: Mapping[str, bytes], **attributes: int) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            for key, value in attributes.items():
                setattr(info, key, value)
            archive.writestr(info, data)
    return path


@pytest.mark.parametrize("prefix", ["client/", ""])
def test_a_zip_becomes_a_tar_gz(tmp_path: Path, prefix: str) -> None:
    files = {name.replace("client/", prefix): data for name, data in FILES.items()}
    made = pack(zipped(tmp_path / "p.zip", files), tmp_path / "p.tgz", LIMITS)
    check_archive(made, LIMITS)
    assert unpacked(made) == FILES


ZIPS = [
    ({"../x": b""}, {}, "leaves the package's folder"),
    ({"/x": b""}, {}, "is an absolute path"),
    ({"client/link": b"/etc"}, {"external_attr": 0o120777 << 16}, "is a link or a device"),
    ({"big": bytes(5 << 20)}, {}, "more than 4194304 bytes"),
    ({str(i): b"" for i in range(51)}, {}, "more than 50 entries"),
]


@pytest.mark.parametrize(("files", "attributes", "reason"), ZIPS, ids=range(len(ZIPS)))
def test_a_zip_that_could_hurt(
    tmp_path: Path, files: Mapping[str, bytes], attributes: dict[str, int], reason: str
) -> None:
    with pytest.raises(BadPackage, match=reason):
        pack(zipped(tmp_path / "p.zip", files, **attributes), tmp_path / "p.tgz", LIMITS)


def test_a_zip_that_is_broken(tmp_path: Path) -> None:
    path = zipped(tmp_path / "p.zip", FILES)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(BadPackage, match="no readable zip"):
        pack(path, tmp_path / "p.tgz", LIMITS)
