"""Real processes with fixed ports: started, killed, stopped, and started again."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import httpx

from fedcombiner.standalone import die_with_parent

READY_S = 60.0
PORTS = range(10_000, 32_000)


def free_address() -> str:
    """One that nobody listens on, below the ports that the kernel gives to outgoing connections: such a
    connection could take it before the program starts that is to listen there.
    """
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return f"127.0.0.1:{port}"
    raise AssertionError(f"no port of {PORTS} is free")


class Program:
    """One program of the stack, as one process at a time. `ready_at` is a URL that answers 200 when it
    serves; it runs in `place`, or where we are.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        directory: Path,
        ready_at: str,
        env: Mapping[str, str] | None = None,
        place: Path | None = None,
    ) -> None:
        self.name = name
        self.place = place  # of its next start
        self._argv = argv
        self.log = directory / f"{name}.log"
        self._ready_at = ready_at
        self.env = {**os.environ, **(env or {})}  # of its next start
        self.on_start: Callable[[int], object] = lambda pid: None  # called when the process has just begun
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} was not started"
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Returns as soon as the process exists."""
        with self.log.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", die_with_parent.__file__, str(os.getpid())),
                *self._argv,
                env=self.env,
                cwd=self.place,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.on_start(self._process.pid)

    async def ready(self) -> None:
        """Wait until it serves. Raises AssertionError if it ends before, or does not."""
        async with httpx.AsyncClient(timeout=2.0) as http:
            try:
                async with asyncio.timeout(READY_S):
                    while not await self._answers(http):
                        assert self.alive, f"{self.name} ended: see {self.log}"
                        await asyncio.sleep(0.05)
            except TimeoutError:
                raise AssertionError(
                    f"{self.name} was not ready after {READY_S:g} s: see {self.log}"
                ) from None

    async def never_ready(self) -> int:
        """Wait for its end; returns the exit code. Raises AssertionError if it serves before, or goes on."""
        async with httpx.AsyncClient(timeout=2.0) as http:
            try:
                async with asyncio.timeout(READY_S):
                    while self.alive:
                        assert not await self._answers(http), f"{self.name} is ready: see {self.log}"
                        await asyncio.sleep(0.02)
            except TimeoutError:
                raise AssertionError(f"{self.name} goes on after {READY_S:g} s: see {self.log}") from None
        return await self.ended()

    async def _answers(self, http: httpx.AsyncClient) -> bool:
        try:
            return (await http.get(self._ready_at)).status_code == 200
        except httpx.HTTPError:
            return False

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        with suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def kill(self) -> None:
        self.signal(signal.SIGKILL)
        await self.ended()

    async def ended(self) -> int:
        """The exit code."""
        assert self._process is not None
        return await self._process.wait()

    async def close(self) -> None:
        """However it is."""
        if self.alive:
            await self.kill()


class RedisProgram(Program):
    """Ready when it answers PING: it speaks no HTTP."""

    async def _answers(self, http: httpx.AsyncClient) -> bool:
        host, _, port = self._ready_at.rpartition(":")
        try:
            reader, writer = await asyncio.open_connection(host, int(port))
        except OSError:
            return False
        try:
            writer.write(b"PING\r\n")
            return await reader.readline() == b"+PONG\r\n"
        except ConnectionError:
            return False
        finally:
            writer.close()
