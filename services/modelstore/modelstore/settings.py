"""What a modelstore can be told."""

from pydantic import Field

from fedcombiner.access.policy import AccessSettings
from fedcombiner.modelstorage.settings import StoreSettings
from fedcombiner.servicekit.settings import Port, Seconds


class ModelstoreSettings(StoreSettings, AccessSettings):
    port: Port = Field(12081, description="TCP port, 0 to 65535 (0: any free port)")
    max_transfers: int = Field(
        16,
        ge=1,
        le=10_000,
        description="transfers that run at once in each direction, the others wait; 1 to 10000",
    )
    max_slow_transfers: int = Field(
        16,
        ge=1,
        le=10_000,
        description="transfers of slow peers that go on beside those while others wait, in each direction; "
        "1 to 10000",
    )
    max_waiting_transfers: int = Field(
        2048,
        ge=1,
        le=1_000_000,
        description="transfers that wait in each direction, more are refused; 1 to 1000000",
    )
    min_transfer_rate: int = Field(
        256 << 10,
        ge=1,
        le=1 << 30,
        description="bytes a second below which a peer is slow, and gives up its slot when others wait; "
        "1 to 1073741824",
    )
    idle_seconds: Seconds = Field(
        60.0, description="seconds without a byte after which a peer is cut off, more than 0"
    )
    store_seconds: Seconds = Field(
        30.0, description="seconds that a transfer waits for a store that is away, more than 0"
    )
