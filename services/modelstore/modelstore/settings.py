"""What a modelstore can be told."""

from pydantic import Field

from fedcombiner.access.policy import AccessSettings
from fedcombiner.modelstorage.settings import StoreSettings
from fedcombiner.servicekit.settings import Port, Seconds


class ModelstoreSettings(StoreSettings, AccessSettings):
    port: Port = Field(12081, description="TCP port, 0 to 65535 (0: any free port)")
    max_transfers: int = Field(
        16, ge=1, le=10_000, description="transfers that run at once, the others wait; 1 to 10000"
    )
    idle_seconds: Seconds = Field(
        60.0, description="seconds without progress after which a peer is cut off, more than 0"
    )
    store_seconds: Seconds = Field(
        30.0, description="seconds that a transfer waits for a store that is away, more than 0"
    )
