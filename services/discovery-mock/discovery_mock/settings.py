"""What a discovery can be told."""

from typing import Literal

from pydantic import Field

from fedcombiner.access.policy import AccessSettings
from fedcombiner.servicekit.settings import Port, Seconds


class DiscoverySettings(AccessSettings):
    port: Port = Field(8092, description="TCP port, 0 to 65535 (0: any free port)")
    combiner_ttl: Seconds = Field(
        75.0, description="seconds after which a combiner that does not announce again is gone, more than 0"
    )
    # A client of FEDn ends at once when it cannot import what it is told here; 0.6 has no numpyhelper.
    helper_type: str = Field(
        "kerashelper", pattern=r"^[a-z]{1,64}$", description="helper that clients load, such as kerashelper"
    )
    package: Literal["remote", "local"] = Field(
        "remote", description="where clients have their compute package from: remote or local"
    )
