"""Checking updates: what is accepted is read back exactly, everything else is refused with its reason."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tracemalloc
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.lib import format as npy
from numpy.typing import NDArray

from fedcombiner.modelstorage.formats import FormatError, ModelSpec, TensorSpec, zipdir
from fedcombiner.modelstorage.formats.arrays import load_arrays, save_arrays
from fedcombiner.modelstorage.formats.npz import check_update, read_spec

Arrays = Mapping[str, NDArray[Any]]
CODES = ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", ">i4", ">f4", ">f8", ">u2"]
PARENT = {"w": np.arange(12, dtype="f4").reshape(3, 4), "b": np.array([0.5, -1.5])}


def spec_of(arrays: Arrays) -> ModelSpec:
    return ModelSpec(
        tuple(TensorSpec(name, array.dtype.newbyteorder("="), array.shape) for name, array in arrays.items())
    )


def saved(path: Path, arrays: Arrays, compress: bool = False) -> Path:
    save_arrays(path, arrays, compress=compress)
    return path


def npy_bytes(array: NDArray[Any], version: tuple[int, int] | None = None) -> bytes:
    buffer = io.BytesIO()
    npy.write_array(buffer, array, version=version, allow_pickle=True)
    return buffer.getvalue()


def npy_with_header(header: str, payload: bytes = b"") -> bytes:
    text = header.encode("latin1")
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + payload


def archive(entries: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, data in entries.items():
            file.writestr(name, data)
    return buffer.getvalue()


def read_back(path: Path, parent: ModelSpec, scratch: Path, block: int = 5) -> dict[str, NDArray[Any]]:
    with check_update(path, parent, scratch) as update:
        flat: dict[str, list[NDArray[Any]]] = {tensor.name: [] for tensor in parent.tensors}
        position = (0, 0)
        for index, start, values in update.blocks(block):
            assert (index, start) >= position
            position = (index, start + values.size)
            assert 0 < values.size <= block
            flat[parent.tensors[index].name].append(values.copy())
        return {
            tensor.name: np.concatenate([np.empty(0, dtype), *flat[tensor.name]]).reshape(tensor.shape)
            for tensor, dtype in zip(parent.tensors, update.dtypes, strict=True)
        }


def refusal(path: Path, scratch: Path, parent: Arrays = PARENT) -> FormatError:
    with pytest.raises(FormatError) as caught:
        check_update(path, spec_of(parent), scratch)
    assert list(scratch.iterdir()) == []
    return caught.value


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    directory = tmp_path / "scratch"
    directory.mkdir()
    return directory


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), compress=st.booleans(), block=st.integers(1, 40))
def test_what_is_accepted_is_read_back_exactly(
    data: st.DataObject, compress: bool, block: int, tmp_path: Path
) -> None:
    arrays: dict[str, NDArray[Any]] = {}
    for name in data.draw(
        st.lists(st.text(min_size=1, max_size=5, alphabet="ab0_/é"), max_size=4, unique=True, min_size=1)
    ):
        shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
        elements: dict[str, Any] = {"allow_nan": False, "allow_infinity": False}
        dtype = np.dtype(data.draw(st.sampled_from(CODES)))
        if dtype.itemsize == 8:
            elements |= {"min_value": -1e200, "max_value": 1e200}
        array = data.draw(hnp.arrays(dtype, shape, elements=elements if dtype.kind == "f" else None))
        arrays[name] = np.asfortranarray(array) if data.draw(st.booleans()) else array
    path = saved(tmp_path / "update.npz", arrays, compress)
    assert read_spec(path) == spec_of(arrays)
    shuffled = dict(data.draw(st.permutations(list(arrays.items()))))
    result = read_back(path, spec_of(shuffled), tmp_path, block)
    for name, array in arrays.items():
        assert result[name].dtype == array.dtype.newbyteorder("=")
        np.testing.assert_array_equal(result[name], array)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("shape", [(1500, 1100), (7, 300, 2, 411), (2, 900_000), (900_000, 2), (90, 1, 9001)])
def test_large_fortran_arrays(shape: tuple[int, ...], compress: bool, tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 250, shape, dtype="u1").astype("f4")
    path = saved(tmp_path / "update.npz", {"w": np.asfortranarray(array)}, compress)
    np.testing.assert_array_equal(read_back(path, spec_of({"w": array}), tmp_path, 65536)["w"], array)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("order", ["C", "F"])
def test_memory_does_not_grow_with_the_model(compress: bool, order: str, tmp_path: Path) -> None:
    array = np.zeros((2000, 2000), order="F" if order == "F" else "C")
    path = saved(tmp_path / "update.npz", {"w": array}, compress)
    spec = spec_of({"w": array})
    del array
    tracemalloc.start()
    try:
        with check_update(path, spec, tmp_path) as update:
            assert sum(values.size for _, _, values in update.blocks(32768)) == 4_000_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20


def test_an_update_can_be_read_again_and_leaves_no_file(tmp_path: Path, scratch: Path) -> None:
    path = saved(tmp_path / "update.npz", PARENT, compress=True)
    with check_update(path, spec_of(PARENT), scratch) as update:
        first = [values.tobytes() for _, _, values in update.blocks(3)]
        second = [values.tobytes() for _, _, values in update.blocks(3)]
        path.unlink()  # the store may let go of it meanwhile
        third = [values.tobytes() for _, _, values in update.blocks(3)]
    assert first == second == third
    assert list(scratch.iterdir()) == []
    update.close()


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_both_npy_versions_are_read(version: tuple[int, int], tmp_path: Path) -> None:
    path = tmp_path / "update.npz"
    path.write_bytes(archive({f"{name}.npy": npy_bytes(array, version) for name, array in PARENT.items()}))
    np.testing.assert_array_equal(read_back(path, spec_of(PARENT), tmp_path)["w"], PARENT["w"])


def test_zip64_and_data_descriptors_are_read(tmp_path: Path) -> None:
    """numpy writes zip64 records into every entry, and data descriptors when it cannot seek."""

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def seek(self, *_: int) -> int:
            raise io.UnsupportedOperation

        tell = seek

    for name, target in (("plain.npz", io.BytesIO()), ("piped.npz", Pipe())):
        np.savez(target, **PARENT)  # type: ignore[arg-type]
        path = tmp_path / name
        path.write_bytes(target.getvalue())
        np.testing.assert_array_equal(read_back(path, spec_of(PARENT), tmp_path)["w"], PARENT["w"])


def changed(**arrays: Any) -> dict[str, NDArray[Any]]:
    return {**PARENT, **{name: np.asarray(array) for name, array in arrays.items()}}


NAN = PARENT["w"].copy()
NAN[1, 2] = np.nan

WRONG_ARRAYS: list[tuple[Arrays, str, str]] = [
    (changed(w=NAN), "non_finite", "array 'w' has nan at flat index 6"),
    (changed(b=[np.inf, 1.0]), "non_finite", "array 'b' has inf at flat index 0"),
    (changed(b=[1.0, -np.inf]), "non_finite", "-inf at flat index 1"),
    (changed(b=np.array([1.0, np.nan], ">f2")), "non_finite", "'b'"),
    (changed(b=[1e300, 1.0]), "too_large", "1e+300 at flat index 0, the largest allowed magnitude is 2**960"),
    (changed(b=[1.0, -1e300]), "too_large", "-1e+300"),
    (changed(w=PARENT["w"].T), "shape", "array 'w' has shape (4, 3), the parent's is (3, 4)"),
    (changed(b=[0.5]), "shape", "(1,)"),
    ({"w": PARENT["w"]}, "names", "missing 'b'"),
    (changed(extra=[1.0]), "names", "not in the parent 'extra'"),
    ({"w": PARENT["w"], "c": PARENT["b"]}, "names", "missing 'b'; not in the parent 'c'"),
    (changed(b=np.array([1, 2], "c16")), "dtype", "complex128"),
    (changed(b=np.array([1, 2], "g")), "dtype", "longdouble" if np.dtype("g").itemsize == 8 else "float128"),
    (changed(b=np.array(["x", "y"])), "dtype", "<U1"),
    (changed(b=np.array([b"x", b"y"])), "dtype", "S1"),
    (changed(b=np.array([1, 2], "M8[s]")), "dtype", "datetime64"),
    (changed(b=np.array([(1, 2.0)] * 2, "i4,f4")), "dtype", "'b'"),
    (changed(b=np.array([b"x", b"y"], "V1")), "dtype", "'b'"),
]


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize(("arrays", "reason", "detail"), WRONG_ARRAYS)
def test_wrong_arrays_are_refused(
    arrays: Arrays, reason: str, detail: str, compress: bool, tmp_path: Path, scratch: Path
) -> None:
    error = refusal(saved(tmp_path / "update.npz", arrays, compress), scratch)
    assert error.reason == reason
    assert detail in error.detail


def test_nothing_is_unpickled(tmp_path: Path, scratch: Path) -> None:
    marker = tmp_path / "executed"

    class Trap:
        def __reduce__(self) -> tuple[Callable[[str], Any], tuple[str]]:
            return os.mkdir, (str(marker),)

    trap = np.array([Trap(), 1], dtype=object)
    entries = {"w.npy": npy_bytes(PARENT["w"]), "b.npy": npy_bytes(trap)}
    path = tmp_path / "update.npz"
    path.write_bytes(archive(entries))
    assert refusal(path, scratch).reason == "dtype"
    with pytest.raises(FormatError, match="dtype"):
        read_spec(path)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Trap()))
    assert marker.exists()  # the trap works


B = npy_bytes(PARENT["b"])


def header(shape: str, descr: str = "<f8") -> bytes:
    return npy_with_header(f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}}}")


WRONG_NPY: list[tuple[bytes, str, str]] = [
    (B[:-1], "not_a_model", "array 'b' is cut off"),
    (B + b"x", "too_large", "array 'b' has 145 bytes, its shape (2,) needs 144"),
    (B[:7], "not_a_model", "array 'b' ends"),
    (b"", "not_a_model", "array 'b' ends"),
    (b"PK" + B[2:], "not_a_model", "no valid npy header"),
    (header("(-2,)"), "shape", "impossible"),
    (header("(2, -1, -1)"), "shape", "impossible"),
    (header(f"({2**62}, 4)"), "shape", "impossible"),
    (header(f"({'1, ' * 33})") + bytes(8), "shape", "impossible"),
    (header("2"), "not_a_model", "no valid npy header"),
    (header("(2.0,)"), "not_a_model", "no valid npy header"),
    (header("(2,)", "nonsense"), "not_a_model", "no valid npy header"),
    (npy_with_header("{'descr': '<f8'}"), "not_a_model", "no valid npy header"),
    (npy_with_header("__import__('os').getpid()"), "not_a_model", "no valid npy header"),
    (npy_with_header("(" * 9000), "not_a_model", "no valid npy header"),
    (npy_with_header("-" * 9000 + "1"), "not_a_model", "no valid npy header"),
    (npy_with_header("9" * 9000), "not_a_model", "no valid npy header"),
    (npy_with_header(" " * 10_001), "not_a_model", "header of 10001 bytes"),
    (b"\x93NUMPY\x02\x00\xff\xff\xff\xff", "not_a_model", "header of 4294967295 bytes"),
    (b"\x93NUMPY\x03\x00" + B[8:], "not_a_model", "version (3, 0)"),
]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize(("content", "reason", "detail"), WRONG_NPY)
def test_wrong_entries_are_refused(
    content: bytes, reason: str, detail: str, method: int, tmp_path: Path, scratch: Path
) -> None:
    path = tmp_path / "update.npz"
    path.write_bytes(archive({"w.npy": npy_bytes(PARENT["w"]), "b.npy": content}, method))
    error = refusal(path, scratch)
    assert error.reason == reason
    assert detail in error.detail
    with pytest.raises(FormatError):
        read_spec(path)


def test_entries_that_are_no_arrays_are_refused(tmp_path: Path, scratch: Path) -> None:
    path = tmp_path / "update.npz"
    path.write_bytes(archive({"w.npy": npy_bytes(PARENT["w"]), "b": B}))
    assert "entry 'b' is not an npy array" in refusal(path, scratch).detail


def test_more_content_than_the_shape_allows_is_not_inflated(tmp_path: Path, scratch: Path) -> None:
    """A bomb: the directory tells the size that the shape needs, the data inflates to a thousand times
    that.
    """
    parent = {"w": np.zeros(1000)}
    honest = npy_bytes(parent["w"])
    data = bytearray(archive({"w.npy": honest + bytes(50_000_000)}, zipfile.ZIP_DEFLATED))
    directory = data.rindex(b"PK\x01\x02")
    struct.pack_into("<L", data, directory + 24, len(honest))
    path = tmp_path / "update.npz"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        error = refusal(path, scratch, parent)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert error.reason == "too_large"
    assert "holds more than the 8000 bytes of shape (1000,)" in error.detail


def test_a_shape_that_no_data_could_fill_is_refused(tmp_path: Path) -> None:
    claim = header(f"({1 << 28},)")
    data = bytearray(archive({"w.npy": claim}, zipfile.ZIP_DEFLATED))
    struct.pack_into("<L", data, data.rindex(b"PK\x01\x02") + 24, len(claim) + (8 << 28))
    path = tmp_path / "parent.npz"
    path.write_bytes(data)
    with pytest.raises(FormatError, match="cut off"):
        read_spec(path)


def test_an_archive_of_far_too_many_entries_is_refused_by_their_number(
    tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    monkeypatch.setattr(zipdir, "_member", lambda *entry: read.append(1))
    path = tmp_path / "update.npz"
    path.write_bytes(archive({f"{number}.npy": b"" for number in range(20_000)}, zipfile.ZIP_STORED))
    error = refusal(path, scratch)
    assert (error.reason, error.detail) == ("names", "the archive has 20000 entries, allowed are 1002")
    data = bytearray(path.read_bytes())
    struct.pack_into("<2H", data, data.rindex(b"PK\x05\x06") + 8, 1, 1)
    path.write_bytes(data)
    assert "lists more than 1 entries and claims 1" in refusal(path, scratch).detail
    assert len(read) == 2


def patched(at: int, value: bytes, record: bytes = b"PK\x01\x02") -> Callable[[bytearray], None]:
    def patch(data: bytearray) -> None:
        start = data.rindex(record) + at
        data[start : start + len(value)] = value

    return patch


DAMAGE: list[tuple[str, Callable[[bytearray], None], str]] = [
    ("encrypted", patched(8, b"\x01\x00"), "is encrypted"),
    ("compression", patched(10, b"\x0c\x00"), "compression 12, allowed are 0 (stored) and 8 (deflated)"),
    ("crc", patched(16, b"\x00\x00\x00\x00"), "CRC-32"),
    ("two sizes", patched(20, b"\x01\x00\x00\x00"), "claims sizes"),
    ("offset", patched(42, b"\x05\x00\x00\x00"), "not where the zip directory says"),
    ("offset outside", patched(42, b"\xf0\xff\xff\x7f"), "the file ends"),
    ("zip64 without values", patched(42, b"\xff\xff\xff\xff"), "broken zip64 sizes"),
    ("entry", patched(0, b"XX"), "zip directory is broken"),
    ("name size", patched(28, b"\xff\xff"), "cut off"),
    ("count", patched(8, b"\x09\x00\x09\x00", b"PK\x05\x06"), "lists 2 entries and claims 9"),
    ("disk", patched(4, b"\x01\x00", b"PK\x05\x06"), "does not end where"),
    ("directory start", patched(16, b"\x01\x00\x00\x00", b"PK\x05\x06"), "does not end where"),
    ("end record", patched(0, b"XX", b"PK\x05\x06"), "is not a zip archive"),
]


@pytest.mark.parametrize(("_", "damage", "detail"), DAMAGE, ids=[case[0] for case in DAMAGE])
def test_damaged_archives_are_refused(
    _: str, damage: Callable[[bytearray], None], detail: str, tmp_path: Path, scratch: Path
) -> None:
    path = saved(tmp_path / "update.npz", PARENT)
    data = bytearray(path.read_bytes())
    damage(data)
    path.write_bytes(data)
    error = refusal(path, scratch)
    assert error.reason == "not_a_model"
    assert detail in error.detail


@pytest.mark.parametrize("content", [b"", b"x", b"\x80\x04N.", b"PK\x05\x06", bytes(100_000)])
def test_what_is_no_archive_is_refused(content: bytes, tmp_path: Path, scratch: Path) -> None:
    path = tmp_path / "update.npz"
    path.write_bytes(content)
    assert refusal(path, scratch).reason == "not_a_model"
    with pytest.raises(FormatError, match="not_a_model"):
        read_spec(path)


def test_duplicate_names_are_refused(tmp_path: Path, scratch: Path) -> None:
    data = archive({"w.npy": B, "v.npy": B}).replace(b"v.npy", b"w.npy")
    path = tmp_path / "update.npz"
    path.write_bytes(data)
    assert "two entries are named 'w.npy'" in refusal(path, scratch).detail


def test_a_huge_directory_is_refused_before_it_is_read(tmp_path: Path, scratch: Path) -> None:
    path = tmp_path / "update.npz"
    with path.open("wb") as file:
        file.truncate(9 << 20)
        file.seek(9 << 20)
        file.write(struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 9, 9, 9 << 20, 0, 0))
    assert refusal(path, scratch).reason == "too_large"


def test_an_empty_archive_is_no_parent(tmp_path: Path) -> None:
    path = tmp_path / "parent.npz"
    path.write_bytes(archive({}))
    with pytest.raises(FormatError, match="holds no array"):
        read_spec(path)


@pytest.mark.parametrize("compress", [False, True])
def test_every_cut_is_refused(compress: bool, tmp_path: Path, scratch: Path) -> None:
    data = saved(tmp_path / "update.npz", PARENT, compress).read_bytes()
    path = tmp_path / "cut.npz"
    for size in range(len(data)):
        path.write_bytes(data[:size])
        assert refusal(path, scratch).reason == "not_a_model"


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4
    ),
    compress=st.booleans(),
)
def test_damage_is_found_or_harmless(
    changes: list[tuple[float, int]], compress: bool, tmp_path: Path
) -> None:
    path = saved(tmp_path / "update.npz", PARENT, compress)
    data = bytearray(path.read_bytes())
    for where, mask in changes:
        data[int(where * len(data))] ^= mask
    path.write_bytes(data)
    try:
        result = read_back(path, spec_of(PARENT), tmp_path)
    except FormatError:
        return
    for name, array in PARENT.items():
        np.testing.assert_array_equal(result[name], array)


def test_an_update_that_is_cut_off_after_the_check_is_an_error(tmp_path: Path) -> None:
    path = saved(tmp_path / "update.npz", PARENT)
    with check_update(path, spec_of(PARENT), tmp_path) as update:
        os.truncate(path, 40)
        with pytest.raises(OSError, match="cut off"):
            list(update.blocks(100))


def test_arrays_of_clients_round_trip(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    save_arrays(buffer, [np.arange(3), [[1.5]], 7])
    loaded = load_arrays(buffer.getvalue())
    assert list(loaded) == ["0", "1", "2"]
    np.testing.assert_array_equal(loaded["1"], [[1.5]])
    path = tmp_path / "model.npz"
    save_arrays(path, {"file": np.ones(2), "allow_pickle": np.zeros(1)}, compress=True)
    assert list(load_arrays(path)) == ["file", "allow_pickle"]
    with pytest.raises(ValueError, match="Object arrays"):
        save_arrays(buffer, {"o": np.array([object()])})
    np.savez(path, o=np.array([object()]))
    with pytest.raises(ValueError, match="allow_pickle"):
        load_arrays(path)
