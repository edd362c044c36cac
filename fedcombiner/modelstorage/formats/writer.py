"""Writing a model as an npz whose bytes depend on its arrays only."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import IO, Any, Final, Self

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from fedcombiner.modelstorage.formats.spec import Block, ModelSpec, TensorSpec

_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
_UNIX: Final = 3
_PERMISSIONS: Final = 0o600 << 16


class NpzWriter:
    """Streams arrays into an uncompressed npz; the same arrays in the same order give the same bytes.

    Nothing in the file depends on time, machine or user, headers are those that ``numpy.savez`` writes, and
    zip64 records appear only where an array or the archive needs them, for readers that know none. The file
    must be seekable: sizes and CRC-32 stand before the data, where readers that ignore the zip directory
    look for them. The file is not closed.
    """

    def __init__(self, file: IO[bytes]) -> None:
        if not file.seekable():
            raise ValueError("an npz can be written to a seekable file only")
        self._zip = zipfile.ZipFile(file, "w", zipfile.ZIP_STORED)

    def write(self, tensor: TensorSpec, values: Iterable[NDArray[Any]]) -> None:
        """Append one array, given as runs in C order. ValueError when they are not exactly the tensor's
        elements.
        """
        dtype = tensor.dtype.newbyteorder("<")
        info = zipfile.ZipInfo(f"{tensor.name}.npy", _EPOCH)
        info.create_system = _UNIX
        info.external_attr = _PERMISSIONS
        info.file_size = tensor.nbytes
        with self._zip.open(info, "w") as member:
            npy.write_array_header_1_0(
                member, {"descr": dtype.str, "fortran_order": False, "shape": tensor.shape}
            )
            written = 0
            for run in values:
                member.write(np.ascontiguousarray(run, dtype).reshape(-1).view(np.uint8).data)
                written += run.size
        if written != tensor.elements:
            raise ValueError(f"array {tensor.name!r} has {tensor.elements} elements, {written} were written")

    def close(self) -> None:
        """Write the zip directory."""
        self._zip.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def write_model(target: str | os.PathLike[str] | IO[bytes], spec: ModelSpec, blocks: Iterable[Block]) -> None:
    """Write a model from its blocks, which come in the order of the spec and of the elements.

    Args:
        target: a path, or a seekable binary file, which is left open.
        blocks: as ``CheckedUpdate.blocks`` gives them; converted to the spec's dtypes where theirs differ.

    Raises:
        ValueError: a block is missing, surplus or out of order.
    """
    if isinstance(target, str | os.PathLike):
        with open(target, "wb", buffering=0) as file:
            write_model(file, spec, blocks)
        return
    queue = _InOrder(blocks)
    with NpzWriter(target) as writer:
        for index, tensor in enumerate(spec.tensors):
            writer.write(tensor, queue.of_tensor(index))
    queue.finish()


class _InOrder:
    """Hands out the blocks of one tensor after the other."""

    def __init__(self, blocks: Iterable[Block]) -> None:
        self._blocks = iter(blocks)
        self._next = next(self._blocks, None)

    def of_tensor(self, index: int) -> Iterator[NDArray[Any]]:
        position = 0
        while self._next is not None and self._next[0] == index:
            _, start, values = self._next
            if start != position:
                raise ValueError(f"block of tensor {index} starts at {start}, expected {position}")
            position += values.size
            yield values
            self._next = next(self._blocks, None)

    def finish(self) -> None:
        if self._next is not None:
            raise ValueError(f"a block of tensor {self._next[0]} is out of order")
