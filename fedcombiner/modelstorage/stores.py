"""The stores that an operator can choose from. Never chosen by a name from the wire."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from fedcombiner.modelstorage.disk import DiskStore
from fedcombiner.modelstorage.store import ModelStore

STORES: Mapping[str, Callable[[Path], ModelStore]] = MappingProxyType({"disk": DiskStore})


def make_store(kind: str, data: Path) -> ModelStore:
    """The store of this kind; `data` is the directory of the disk store. It is not started.

    Raises:
        KeyError: there is no such kind; settings allow the keys of `STORES` only.
    """
    return STORES[kind](data)
