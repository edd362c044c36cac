import asyncio
import os
import signal
import stat
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psutil
import pytest
import redis.asyncio
from redis.exceptions import RedisError

from fedcombiner.servicekit.backoff import Backoff, retry
from fedcombiner.servicekit.errors import StartupError
from fedcombiner.servicekit.lifecycle import Stop
from fedcombiner.standalone.redis_child import LEAST_MIB, MIB, RedisChild, default_memory_mib
from fedcombiner.standalone.runtime_directory import socket_path

SOON = 30.0


class NotYet(AssertionError):
    pass


async def until(what: str, predicate: Callable[[], bool]) -> None:
    async def look() -> None:
        if not predicate():
            raise NotYet(what)

    await retry(look, on=NotYet, timeout=SOON, backoff=Backoff(0.01, 0.1))


def has_ended(process: psutil.Process) -> bool:
    """Also when whoever inherited it has not asked for its exit code yet."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@asynccontextmanager
async def running(child: RedisChild) -> AsyncIterator[redis.asyncio.Redis]:
    await child.start()
    try:
        async with redis.asyncio.from_url(child.url) as client:
            yield client
    finally:
        await child.stop()


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """Longer than a socket's path may be, with a space and characters that a configuration file would eat."""
    return tmp_path / "a directory" / ('with "quotes" and é ' + "x" * 100)


async def test_its_memory_is_bounded(tmp_path: Path) -> None:
    async with running(RedisChild(tmp_path, memory_mib=80)) as client:
        assert await client.config_get("maxmemory") == {"maxmemory": str(80 * MIB)}
    async with running(RedisChild(tmp_path)) as client:
        bound = int((await client.config_get("maxmemory"))["maxmemory"])
        assert bound == default_memory_mib() * MIB
        assert LEAST_MIB * MIB <= bound <= max(LEAST_MIB * MIB, psutil.virtual_memory().total // 4)


async def test_it_serves_under_a_long_path_with_spaces_and_keeps_what_was_written(data_dir: Path) -> None:
    async with running(RedisChild(data_dir)) as client:
        assert await client.set("key", "value")
        configured = await client.config_get("appendfsync", "appendonly", "maxmemory-policy", "save", "port")
        assert configured == {
            "appendfsync": "always",
            "appendonly": "yes",
            "maxmemory-policy": "noeviction",
            "save": "",
            "port": "0",
        }
    async with running(RedisChild(data_dir)) as client:
        assert await client.get("key") == b"value"
    assert (data_dir / "redis" / "valkey.log").stat().st_size > 0


async def test_the_socket_is_private_and_gone_after_the_stop(data_dir: Path) -> None:
    child = RedisChild(data_dir)
    socket = socket_path(data_dir / "redis", None)
    async with running(child):
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
        pid = child.pid
    assert not socket.parent.exists()
    assert child.pid is None
    assert pid is not None
    assert not psutil.pid_exists(pid)


async def test_a_killed_server_is_started_again_with_its_data(data_dir: Path) -> None:
    child = RedisChild(data_dir)
    async with running(child) as client:
        for number in range(3):
            assert await client.set(f"key{number}", number)
            killed = child.pid
            assert killed is not None
            os.kill(killed, signal.SIGKILL)
            await until("another server", lambda killed=killed: child.pid not in (None, killed))

            async def read(number: int = number) -> bytes | None:
                return await client.get(f"key{number}")

            assert await retry(read, on=(RedisError, OSError), timeout=SOON) == str(number).encode()


async def test_two_stacks_on_one_directory_are_a_clear_error(data_dir: Path) -> None:
    first = RedisChild(data_dir)
    async with running(first) as client:
        with pytest.raises(StartupError, match=rf"in use by another running stack \(process {os.getpid()}\)"):
            await RedisChild(data_dir).start()
        assert await client.ping()


async def test_two_directories_have_two_servers(tmp_path: Path) -> None:
    async with running(RedisChild(tmp_path / "a")) as a, running(RedisChild(tmp_path / "b")) as b:
        await a.set("key", "a")
        assert await b.get("key") is None


async def test_stop_after_a_failed_start_and_without_a_start_is_harmless(tmp_path: Path) -> None:
    child = RedisChild(tmp_path, binary=Path("/nonexistent/valkey-server"))
    with pytest.raises(StartupError, match="cannot run /nonexistent/valkey-server: No such file"):
        await child.start()
    await child.stop()
    async with running(RedisChild(tmp_path)) as client:
        assert await client.ping()


async def test_a_binary_that_cannot_run_is_a_readable_error(tmp_path: Path) -> None:
    binary = tmp_path / "valkey-server"
    binary.write_bytes(b"\x7fELF of another machine")
    binary.chmod(0o755)
    with pytest.raises(StartupError, match="Exec format error"):
        await RedisChild(tmp_path / "data", binary=binary).start()


async def test_a_data_directory_that_is_a_file_is_a_readable_error(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(StartupError, match="embedded Redis cannot start"):
        await RedisChild(tmp_path / "data").start()


async def test_a_broken_append_only_file_is_a_readable_error(tmp_path: Path) -> None:
    async with running(RedisChild(tmp_path)) as client:
        await client.set("key", "value")
    for part in (tmp_path / "redis" / "appendonlydir").glob("*.incr.aof"):
        part.write_bytes(b"not a command\r\n" + part.read_bytes())
    with pytest.raises(StartupError, match=r"ended at once: .*append only file"):
        await RedisChild(tmp_path).start()


def test_a_runtime_directory_that_is_too_long_is_a_readable_error(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="too long"):
        RedisChild(tmp_path, tmp_path / ("x" * 120))


async def test_a_runtime_directory_of_others_is_refused(tmp_path: Path) -> None:
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o777)
    runtime.chmod(0o777)
    with pytest.raises(StartupError, match="only this user can enter"):
        await RedisChild(tmp_path / "data", runtime).start()


PARENT = """
    import asyncio, sys
    from pathlib import Path
    from fedcombiner.standalone.redis_child import LEAST_MIB, MIB, RedisChild, default_memory_mib
    import redis.asyncio

    async def main():
        child = RedisChild(Path(sys.argv[1]))
        await child.start()
        async with redis.asyncio.from_url(child.url) as client:
            await client.set("from", "the parent")
        sys.stdout.write(f"{child.pid}\\n")
        sys.stdout.flush()
        await asyncio.Event().wait()

    asyncio.run(main())
"""


@asynccontextmanager
async def parent_process(data_dir: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, psutil.Process]]:
    """A process with a RedisChild, and its server."""
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", textwrap.dedent(PARENT), str(data_dir), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert parent.stdout is not None
        async with asyncio.timeout(SOON):
            line = await parent.stdout.readline()
        yield parent, psutil.Process(int(line))
    finally:
        with suppress(ProcessLookupError):
            parent.kill()
        await parent.wait()


async def test_the_server_ends_with_a_parent_that_is_killed(data_dir: Path) -> None:
    async with parent_process(data_dir) as (parent, server):
        parent.kill()
        await parent.wait()
        await until("the server to end", lambda: has_ended(server))
    async with running(RedisChild(data_dir)) as client:
        assert await client.get("from") == b"the parent"


async def test_a_server_that_outlives_its_parent_is_ended_before_the_next_starts(data_dir: Path) -> None:
    async with parent_process(data_dir) as (parent, server):
        # A stopped process sees no signal but SIGKILL and SIGCONT: it is the slowest that a server can end.
        server.suspend()
        parent.kill()
        await parent.wait()
        child = RedisChild(data_dir)
        starting = asyncio.create_task(child.start())
        await until(
            "the new stack to wait",
            lambda: (data_dir / "redis" / "stack.lock").read_text() == f"{os.getpid()}\n",
        )
        assert server.status() == psutil.STATUS_STOPPED
        assert not starting.done()
        server.resume()
        await starting
        try:
            assert has_ended(server)
            async with redis.asyncio.from_url(child.url) as client:
                assert await client.get("from") == b"the parent"
        finally:
            await child.stop()


async def test_a_stale_pid_file_of_another_process_harms_nobody(tmp_path: Path) -> None:
    bystander = await asyncio.create_subprocess_exec("sleep", "60")
    try:
        (tmp_path / "redis").mkdir()
        (tmp_path / "redis" / "valkey.pid").write_text(f"{bystander.pid}\n")
        async with running(RedisChild(tmp_path)) as client:
            assert await client.ping()
        assert bystander.returncode is None
        assert psutil.Process(bystander.pid).status() != psutil.STATUS_ZOMBIE
    finally:
        bystander.kill()
        await bystander.wait()


async def test_a_cancelled_start_leaves_no_process(data_dir: Path) -> None:
    child = RedisChild(data_dir, stop=Stop())
    starting = asyncio.create_task(child.start())
    await until("a process", lambda: child.pid is not None)
    process = psutil.Process(child.pid)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert has_ended(process)
    async with running(RedisChild(data_dir)) as client:
        assert await client.ping()
