"""Writing models: the bytes depend on the arrays only, and everyone can read them."""

from __future__ import annotations

import hashlib
import io
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedcombiner.modelstorage.formats import Block, ModelSpec, TensorSpec
from fedcombiner.modelstorage.formats.arrays import load_arrays
from fedcombiner.modelstorage.formats.npz import NpzWriter, read_spec, write_model

ARRAYS = {
    "w": np.arange(12, dtype="f4").reshape(3, 4),
    "steps": np.array(7, "i8"),
    "empty": np.zeros((0, 3), "f2"),
    "größe/1": np.array([True, False]),
}
SPEC = ModelSpec(tuple(TensorSpec(name, array.dtype, array.shape) for name, array in ARRAYS.items()))


def blocks(step: int = 5, arrays: dict[str, NDArray[Any]] = ARRAYS) -> Iterator[Block]:
    for index, array in enumerate(arrays.values()):
        flat = array.reshape(-1)
        for start in range(0, flat.size, step):
            yield index, start, flat[start : start + step]


def written(step: int = 5) -> bytes:
    target = io.BytesIO()
    write_model(target, SPEC, blocks(step))
    return target.getvalue()


def test_the_bytes_are_pinned() -> None:
    assert (
        hashlib.sha256(written()).hexdigest()
        == "7c10d7f51f38a54d8c99b8ea40feb03071703e203b2933996ec595a396bdbede"
    )


def test_the_bytes_do_not_depend_on_the_blocks_or_the_kind_of_target(tmp_path: Path) -> None:
    path = tmp_path / "model.npz"
    write_model(path, SPEC, blocks(2))
    assert written(1) == written(100) == path.read_bytes()


def test_numpy_and_we_read_it(tmp_path: Path) -> None:
    path = tmp_path / "model.npz"
    path.write_bytes(written())
    loaded = load_arrays(path)
    assert list(loaded) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert loaded[name].dtype == array.dtype
        np.testing.assert_array_equal(loaded[name], array)
    assert read_spec(path) == SPEC


def test_old_readers_find_plain_entries_with_sizes_before_the_data() -> None:
    data = written()
    assert data.startswith(b"PK\x03\x04")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        for info in archive.infolist():
            assert info.date_time == (1980, 1, 1, 0, 0, 0)
            assert (info.compress_type, info.extract_version, info.extra) == (zipfile.ZIP_STORED, 20, b"")
            (flags,) = struct.unpack_from("<H", data, info.header_offset + 6)
            crc, compressed, size = struct.unpack_from("<3L", data, info.header_offset + 14)
            assert not flags & 0x8
            assert (crc, compressed, size) == (info.CRC, info.file_size, info.file_size)
            content = archive.read(info)
            expected = io.BytesIO()
            np.lib.format.write_array(expected, ARRAYS[info.filename.removesuffix(".npy")])
            assert content == expected.getvalue()


def test_an_array_of_4_gib_gets_zip64_records() -> None:
    target = io.BytesIO()
    writer = NpzWriter(target)
    tensor = TensorSpec("w", np.dtype("f4"), (1 << 30,))
    with pytest.raises(ValueError, match="1073741824 elements, 0 were written"):
        writer.write(tensor, iter(()))
    assert struct.unpack_from("<H", target.getvalue(), 28) == (20,)


def test_blocks_are_converted_to_the_specs_dtype() -> None:
    spec = ModelSpec((TensorSpec("w", np.dtype("f4"), (3,)),))
    target = io.BytesIO()
    write_model(target, spec, [(0, 0, np.array([1, 2, 3], ">f8"))])
    loaded = load_arrays(target.getvalue())["w"]
    assert loaded.dtype == np.float32
    assert loaded.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([], "3 elements, 0 were written"),
        ([(0, 0, np.zeros(2, "f4"))], "3 elements, 2 were written"),
        ([(0, 0, np.zeros(4, "f4"))], "3 elements, 4 were written"),
        ([(0, 0, np.zeros(2, "f4")), (0, 0, np.zeros(1, "f4"))], "starts at 0, expected 2"),
        ([(0, 0, np.zeros(3, "f4")), (1, 0, np.zeros(3, "f4"))], "tensor 1 is out of order"),
        ([(1, 0, np.zeros(3, "f4")), (0, 0, np.zeros(3, "f4"))], "3 elements, 0 were written"),
    ],
)
def test_wrong_blocks_are_refused(wrong: list[Block], message: str) -> None:
    spec = ModelSpec((TensorSpec("w", np.dtype("f4"), (3,)),))
    with pytest.raises(ValueError, match=message):
        write_model(io.BytesIO(), spec, wrong)


def test_a_target_that_cannot_seek_is_refused() -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    with pytest.raises(ValueError, match="seekable"):
        NpzWriter(Pipe())


def test_spec_counts_elements_and_bytes() -> None:
    assert SPEC.elements == 12 + 1 + 0 + 2
    assert SPEC.nbytes == 48 + 8 + 0 + 2
    assert SPEC.offsets == (0, 12, 13, 13)
