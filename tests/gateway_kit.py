"""HAProxy as the shipped configuration runs it, in front of services of this test."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from tests.faults.processes import Program, free_address

CONFIG: Final = Path(__file__).parents[1] / "deploy" / "haproxy" / "haproxy.cfg"


def haproxy_binary() -> str | None:
    """HAProxy, where it is installed."""
    return shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


@asynccontextmanager
async def gateway(
    directory: Path, modelstore: str, health_port: int, **environment: str
) -> AsyncIterator[str]:
    """The address of a gateway whose every server is this one."""
    binary = haproxy_binary()
    assert binary is not None
    address, operations = free_address(), free_address()
    names = [f"{name}_{number}" for name in ("COMBINER", "MODELSTORE") for number in (1, 2)]
    servers = dict.fromkeys(names, modelstore) | {f"{name}_HEALTH_PORT": str(health_port) for name in names}
    given = {"GATEWAY_BIND": address, "GATEWAY_METRICS_BIND": operations, **servers, **environment}
    argv = [binary, "-db", "-f", str(CONFIG)]
    program = Program("gateway", argv, directory, f"http://{operations}/healthz", given)
    await program.start()
    try:
        await program.ready()
        yield address
    finally:
        await program.close()
