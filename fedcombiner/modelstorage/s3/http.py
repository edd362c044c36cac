"""HTTP connections whose time limits are limits of silence.

urllib3 gives a whole request body one limit, and a large part may take longer than that over a slow line.
Here a body is sent in pieces, each with its own limit, so that a transfer is cut off only when nothing moves.
"""

import ssl
from typing import Any, Final

from urllib3 import PoolManager, Timeout
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

CONNECT_S: Final = 5.0
SILENCE_S: Final = 30.0
_PIECE_BYTES: Final = 256 << 10
# More connections than this work too, but are not kept.
_KEPT_CONNECTIONS: Final = 32


class _Patient(HTTPConnection):
    """After connecting, the limit counts from one piece of a body to the next."""

    def send(self, data: Any) -> None:
        if self.sock is None:
            self.connect()
        self.sock.settimeout(SILENCE_S)
        if not isinstance(data, bytes | bytearray | memoryview):
            super().send(data)
            return
        view = memoryview(data)
        for start in range(0, len(view), _PIECE_BYTES):
            super().send(view[start : start + _PIECE_BYTES])


class _PatientTls(_Patient, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Patient


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _PatientTls


def pool_manager(ca_file: str = "") -> PoolManager:
    """Connections for the object store, without retries; `ca_file`: PEM of the authorities to trust.

    By default the system's authorities are trusted.

    Raises:
        OSError: the file cannot be read or holds no certificates.
    """
    context = ssl.create_default_context(cafile=ca_file or None)
    manager = PoolManager(
        maxsize=_KEPT_CONNECTIONS,
        timeout=Timeout(connect=CONNECT_S, read=SILENCE_S),
        retries=False,
        ssl_context=context,
    )
    manager.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}
    return manager
