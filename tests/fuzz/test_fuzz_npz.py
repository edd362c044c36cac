"""The npz decoder: whatever an archive holds is an update, or refused with a reason, at little cost."""

from __future__ import annotations

import io
import struct
import time
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
from hypothesis import strategies as st

from fedcombiner.client.made_up import to_npz
from fedcombiner.modelstorage.formats import FormatError, ModelSpec
from fedcombiner.modelstorage.formats.npz import check_update, read_spec
from tests.fuzz.fuzz_kit import fuzz
from tests.fuzz.hostile_kit import damaged

ARRAYS = {"w": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.array([0.5, -1.5])}
SECONDS = 5.0
GROWTH = 64 << 20


def good(compress: bool = False, fortran: bool = False) -> bytes:
    arrays = {name: np.asfortranarray(array) if fortran else array for name, array in ARRAYS.items()}
    buffer = io.BytesIO()
    (np.savez_compressed if compress else np.savez)(buffer, **arrays)
    return buffer.getvalue()


GOOD = [to_npz(ARRAYS), good(), good(compress=True), good(compress=True, fortran=True)]

SHAPES = [
    "(3, 4)",
    "(2,)",
    "()",
    "(-1,)",
    "(0,)",
    "(3, 4,",
    "(10**12,)",
    "(1000000000000,)",
    f"({'9' * 31},)",
]
DTYPES = ["<f4", ">f8", "<f2", "|b1", "|O", "|V8", "<U3", "<c8", "<M8[s]", "[('a', '<f4')]", "nonsense"]


def npy(version: bytes, descr: str, shape: str, order: str, length: int | None, payload: bytes) -> bytes:
    header = f"{{'descr': {descr!r}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()
    told = len(header) if length is None else length
    return b"\x93NUMPY" + version + struct.pack("<H", told) + header + payload


def archive(entries: list[tuple[str, bytes]], method: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as made:
        for name, data in entries:
            made.writestr(zipfile.ZipInfo(name), data, method)
    return buffer.getvalue()


ENTRIES = st.builds(
    npy,
    st.sampled_from([b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x09"]),
    st.sampled_from(DTYPES),
    st.sampled_from(SHAPES),
    st.sampled_from(["True", "False", "None", "7"]),
    st.none() | st.integers(0, 2**16 - 1),
    st.binary(max_size=100) | st.sampled_from([bytes(48), bytes(16)]),
)
NAMES = st.sampled_from(["w.npy", "b.npy", "../w.npy", "w", "", "w.npy.npy", "é.npy", "w.npy/"])
BUILT = st.builds(
    archive,
    st.lists(st.tuples(NAMES, ENTRIES), max_size=3, unique_by=lambda entry: entry[0]),
    st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]),
)
ARCHIVES = st.sampled_from(GOOD).flatmap(damaged) | BUILT | BUILT.flatmap(damaged) | st.binary(max_size=300)


def test_no_archive_finds_a_bug(tmp_path: Path) -> None:
    path, scratch = tmp_path / "update.npz", tmp_path / "scratch"
    scratch.mkdir()
    path.write_bytes(GOOD[0])
    parent = read_spec(path)
    process = psutil.Process()
    read(path, parent, scratch)
    files = process.num_fds()
    memory = process.memory_info().rss

    def check(content: bytes) -> None:
        path.write_bytes(content)
        began = time.monotonic()
        read(path, parent, scratch)
        assert time.monotonic() - began < SECONDS
        assert not list(scratch.iterdir())

    fuzz(ARCHIVES, check, examples=150)
    assert process.num_fds() <= files
    assert process.memory_info().rss <= memory + GROWTH


def read(path: Path, parent: ModelSpec, scratch: Path) -> None:
    """As a model, and as an update of the parent. FormatError is all that may be raised."""
    with suppress(FormatError):
        read_spec(path)
    with suppress(FormatError), check_update(path, parent, scratch) as update:
        for _, _, values in update.blocks(5):
            assert np.isfinite(values).all()
