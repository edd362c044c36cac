"""The config of FEDn's combiner, read into the settings of this one."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from combiner.aggregation import AGGREGATORS
from combiner.connect import anybody
from combiner.settings import CombinerSettings
from fedcombiner.servicekit.binding import host_port, is_ipv6, is_loopback
from fedcombiner.servicekit.errors import InvalidArgument

# FEDn's command puts them there; they mean nothing once the config is read.
_IGNORED: Final = ("init", "network_id")
_FEDN: Final = ("discover_host", "discover_port", "token", "fqdn", "secure", "verify", "aggregator", "bind")
_MADE_OF_FEDNS: Final = ("advertise", "advertise_fqdn", "discovery_url", "discovery_token")
_OURS: Final = tuple(name for name in CombinerSettings.model_fields if name not in _MADE_OF_FEDNS)
_BOOLEANS: Final = ("secure", "verify")


@dataclass(frozen=True, slots=True)
class SeedConfig:
    """`aggregator` averages the rounds that name none. `discovery_trust` is whom to believe at the discovery;
    if it is None, those whom the settings name.
    """

    settings: CombinerSettings
    aggregator: str
    discovery_trust: ssl.SSLContext | None

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> SeedConfig:
        """The keys of FEDn's config, and settings of ours by their names in lower case; None is unset.

        Raises:
            InvalidArgument: a key is not known, or the aggregator is none.
            InvalidSettings: a value cannot be.
        """
        given = {key: value for key, value in config.items() if value is not None and key not in _IGNORED}
        for key in given:
            if key not in _OURS and key not in _FEDN:
                raise InvalidArgument("config", key, f"the keys {', '.join(sorted({*_OURS, *_FEDN}))}")
        for key in _BOOLEANS:
            if not isinstance(given.get(key, False), bool):
                raise InvalidArgument(key, given[key], "True, False")
        aggregator = str(given.get("aggregator", "fedavg"))
        if aggregator not in AGGREGATORS:
            raise InvalidArgument("aggregator", aggregator, ", ".join(AGGREGATORS))
        ours = {key: value for key, value in given.items() if key not in _FEDN}
        made = {**_addresses(given), **_discovery(given), **_certificate(given)}
        trust = None if given.get("verify", True) else anybody()
        return cls(CombinerSettings.checked(**{**ours, **made}), aggregator, trust)


def _addresses(given: Mapping[str, Any]) -> dict[str, Any]:
    """FEDn's `host` is where clients reach the combiner; it listens on loopback if that is one."""
    host = str(given.get("host", "localhost")).strip("[]")
    listen = given.get("bind") or _listen(host)
    port = given.get("port", CombinerSettings.model_fields["port"].default)
    return {
        "host": listen,
        "port": port,
        "metrics_host": given.get("metrics_host", listen),
        "advertise": host_port(host, port) if port else "",
        "advertise_fqdn": given.get("fqdn", ""),
    }


def _listen(host: str) -> str:
    if is_ipv6(host):
        return "::1" if is_loopback(host) else "::"
    return "127.0.0.1" if is_loopback(host) else "0.0.0.0"


def _discovery(given: Mapping[str, Any]) -> dict[str, Any]:
    host = str(given.get("discover_host") or "").strip("[]")
    if not host:
        return {}
    scheme = "https" if given.get("secure") else "http"
    port = given.get("discover_port") or (443 if given.get("secure") else 80)
    return {"discovery_url": f"{scheme}://{host_port(host, port)}", "discovery_token": given.get("token", "")}


def _certificate(given: Mapping[str, Any]) -> dict[str, Any]:
    if not given.get("secure") or "tls_cert_file" in given:
        return {}
    if not given.get("discover_host"):
        raise InvalidArgument("secure", True, "with tls_cert_file and tls_key_file, or with discover_host")
    return {"tls_from_discovery": True}
