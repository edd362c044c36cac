"""The client library: join a federation (`FederatedClient`) or run one (`OperatorClient`)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from fedcombiner.client.client import FederatedClient
    from fedcombiner.client.operator import OperatorClient
    from fedcombiner.client.trust import Trust

__all__ = ["FederatedClient", "OperatorClient", "Trust"]

_MODULES: Final = {"FederatedClient": "client", "OperatorClient": "operator", "Trust": "trust"}


def __getattr__(name: str) -> Any:
    # Imported when asked for: discovery uses parts of this package, and its image has no numpy.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
