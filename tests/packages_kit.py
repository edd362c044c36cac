"""Compute packages for tests."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

YAML = b"entry_points:\n  train:\n    command: python train.py\n"
FILES = {"client/fedn.yaml": YAML, "client/train.py": b"print('train')\n"}


def entry(name: str, size: int = 0, **changes: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size
    for key, value in changes.items():
        setattr(info, key, value)
    return info


def archive(path: Path, files: Mapping[str, bytes] = FILES, *others: tarfile.TarInfo) -> Path:
    """A tar.gz with these files, and other entries, filled with zeros."""
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT) as tar:
        for name, data in files.items():
            tar.addfile(entry(name, len(data)), io.BytesIO(data))
        for other in others:
            tar.addfile(other, io.BytesIO(bytes(other.size)))
    return path


def archive_of(train: bytes) -> bytes:
    """The bytes of a good package whose training is `train`."""
    file = io.BytesIO()
    # Without the time, so that the same package has the same bytes.
    with (
        gzip.GzipFile(fileobj=file, mode="wb", compresslevel=1, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w:") as tar,
    ):
        for name, data in {**FILES, "client/train.py": train}.items():
            tar.addfile(entry(name, len(data)), io.BytesIO(data))
    return file.getvalue()
