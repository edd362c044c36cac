"""The client library: join a federation (`FederatedClient`) or run one (`OperatorClient`)."""

from fedcombiner.client.client import FederatedClient
from fedcombiner.client.operator import OperatorClient

__all__ = ["FederatedClient", "OperatorClient"]
