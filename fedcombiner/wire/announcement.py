"""What our combiners say in an announcement beyond FEDn's: in headers, which FEDn's controllers ignore."""

from __future__ import annotations

from typing import Final

ACTIVE_CLIENTS_HEADER: Final = "combiner-active-clients"
MAX_CLIENTS_HEADER: Final = "combiner-max-clients"
