"""The stores that an operator can choose from. Never chosen by a name from the wire."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from fedcombiner.modelstorage.disk import DiskStore
from fedcombiner.modelstorage.settings import StoreSettings
from fedcombiner.modelstorage.store import ModelStore
from fedcombiner.servicekit.errors import StartupError


def make_store(settings: StoreSettings) -> ModelStore:
    """The store that the settings choose. It is not started.

    Raises:
        StartupError: what it needs is not installed, or it cannot be as the settings say.
    """
    return STORES[settings.store](settings)


def _disk(settings: StoreSettings) -> ModelStore:
    return DiskStore(settings.data, reserve=settings.disk_reserve_bytes)


def _minio(settings: StoreSettings) -> ModelStore:
    try:
        from fedcombiner.modelstorage.minio import MinioStore
        from fedcombiner.modelstorage.s3.bucket import S3Location
    except ModuleNotFoundError as error:
        install = "pip install 'federated-combiner[minio]'"
        raise StartupError(f"STORE=minio needs the package {error.name}: {install}") from None
    location = S3Location(
        settings.minio_url,
        settings.minio_bucket,
        settings.minio_access_key,
        settings.minio_secret_key.get_secret_value(),
        settings.minio_region,
        str(settings.minio_ca_file or ""),
    )
    try:
        return MinioStore(location, settings.scratch)
    except ValueError as error:
        raise StartupError(f"MINIO_URL={settings.minio_url}: {error}") from None
    except OSError as error:
        raise StartupError(f"MINIO_CA_FILE={settings.minio_ca_file}: {error.strerror or error}") from None


STORES: Mapping[str, Callable[[StoreSettings], ModelStore]] = MappingProxyType(
    {"disk": _disk, "minio": _minio}
)
