"""The client library: join a federation (`FederatedClient`) or run one (`OperatorClient`)."""

from fedcombiner.client.client import FederatedClient
from fedcombiner.client.operator import OperatorClient
from fedcombiner.client.trust import Trust

__all__ = ["FederatedClient", "OperatorClient", "Trust"]
