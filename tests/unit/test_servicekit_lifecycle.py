import asyncio
import signal
import subprocess
import sys
import textwrap

import pytest
from structlog.testing import capture_logs

from fedcombiner.servicekit.errors import StartupError
from fedcombiner.servicekit.lifecycle import Lifecycle, Stop, Stopped, Supervisor


class Part:
    def __init__(self, name: str, journal: list[str], *, start: str = "", stop: str = "") -> None:
        self._name = name
        self._journal = journal
        self._behaviour = {"start": start, "stop": stop}

    async def start(self) -> None:
        await self._act("start")

    async def stop(self) -> None:
        await self._act("stop")

    async def _act(self, step: str) -> None:
        match self._behaviour[step]:
            case "raise":
                raise ValueError(f"{self._name} cannot {step}")
            case "time out":
                raise TimeoutError("of its own")
            case "hang":
                try:
                    await asyncio.Event().wait()
                finally:
                    self._journal.append(f"{step} {self._name} cancelled")
        self._journal.append(f"{step} {self._name}")


async def test_parts_start_in_order_and_stop_in_reverse() -> None:
    journal: list[str] = []
    async with Lifecycle(Stop()) as lifecycle:
        for name in "abc":
            await lifecycle.start(name, Part(name, journal))
    assert journal == ["start a", "start b", "start c", "stop c", "stop b", "stop a"]


async def test_a_failed_start_stops_what_was_started() -> None:
    journal: list[str] = []
    async with Lifecycle(Stop()) as lifecycle:
        await lifecycle.start("a", Part("a", journal))
        with pytest.raises(ValueError, match="b cannot start"):
            await lifecycle.start("b", Part("b", journal, start="raise"))
    assert journal == ["start a", "stop a"]


async def test_a_start_that_takes_too_long_is_an_error_for_the_operator() -> None:
    journal: list[str] = []
    async with Lifecycle(Stop()) as lifecycle:
        await lifecycle.start("a", Part("a", journal))
        with pytest.raises(StartupError, match=r"^b did not start within 0\.01 s$"):
            await lifecycle.start("b", Part("b", journal, start="hang"), start_seconds=0.01)
    assert journal == ["start a", "start b cancelled", "stop a"]


async def test_a_time_out_of_the_part_itself_is_passed_on() -> None:
    with pytest.raises(TimeoutError, match="of its own"):
        async with Lifecycle(Stop()) as lifecycle:
            await lifecycle.start("a", Part("a", [], start="time out"))


async def test_a_stop_in_mid_start_ends_the_start() -> None:
    journal: list[str] = []
    stop = Stop()
    asyncio.get_running_loop().call_soon(stop.set, "SIGTERM")
    with pytest.raises(Stopped, match="SIGTERM"):
        async with Lifecycle(stop) as lifecycle:
            await lifecycle.start("a", Part("a", journal, start="hang"))
    assert journal == ["start a cancelled"]


@pytest.mark.parametrize("fault", ["raise", "hang", "time out"])
async def test_a_part_that_does_not_stop_does_not_keep_the_others_from_it(fault: str) -> None:
    journal: list[str] = []
    with capture_logs() as logs:
        async with Lifecycle(Stop()) as lifecycle:
            await lifecycle.start("a", Part("a", journal))
            await lifecycle.start("b", Part("b", journal, stop=fault), stop_seconds=0.01)
    assert journal[-1] == "stop a"
    wanted = "did not stop in time" if fault == "hang" else "failed to stop"
    assert [(entry["event"], entry["component"]) for entry in logs if entry["log_level"] == "error"] == [
        (wanted, "b")
    ]


async def test_the_first_reason_stays_and_a_failure_is_remembered() -> None:
    stop = Stop()
    stop.set("SIGTERM")
    stop.set("a task failed", failed=True)
    assert (stop.reason, stop.failed, stop.is_set) == ("SIGTERM", True, True)


async def test_guard_passes_results_and_errors_on() -> None:
    async def result() -> int:
        return 7

    async def fail() -> None:
        raise KeyError("x")

    assert await Stop().guard(result()) == 7
    with pytest.raises(KeyError):
        await Stop().guard(fail())


async def test_a_background_task_that_fails_is_logged_and_stops_the_process() -> None:
    stop = Stop()
    supervisor = Supervisor(stop)

    async def crash() -> None:
        raise KeyError("lost")

    with capture_logs() as logs:
        supervisor.spawn("rounds", crash())
        async with asyncio.timeout(10):
            await stop.wait()
    assert stop.failed
    assert stop.reason == "background task 'rounds' failed"
    failure = next(entry for entry in logs if entry["event"] == "background task failed")
    assert repr(failure["exc_info"]) == "KeyError('lost')"
    await supervisor.stop()


async def test_a_background_task_that_ends_or_is_cancelled_stops_nothing() -> None:
    stop = Stop()
    supervisor = Supervisor(stop)
    ended = supervisor.spawn("short", asyncio.sleep(0, result=5))
    cancelled = supervisor.spawn("long", asyncio.Event().wait())
    assert await ended == 5
    cancelled.cancel()
    await asyncio.wait([cancelled])
    assert not stop.is_set


async def test_stopping_the_supervisor_cancels_its_tasks_and_waits_for_their_clean_up() -> None:
    supervisor, cleaned = Supervisor(Stop()), []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append(True)

    supervisor.spawn("work", work())
    await asyncio.sleep(0)
    await supervisor.stop()
    assert cleaned == [True]
    with pytest.raises(RuntimeError, match="no task can be started any more: late"):
        supervisor.spawn("late", work())


PROGRAM = """
    import asyncio, sys
    from fedcombiner.servicekit.errors import StartupError
    from fedcombiner.servicekit.lifecycle import Supervisor, run

    async def main(stop):
        mode = sys.argv[1]
        if mode == "startup error":
            raise StartupError("PORT=1: taken")
        if mode == "crash":
            Supervisor(stop).spawn("rounds", asyncio.wait_for(asyncio.Event().wait(), 0.01))
        sys.stdout.write("ready\\n")
        sys.stdout.flush()
        await stop.guard(asyncio.Event().wait()) if mode == "guarded" else await stop.wait()
        if mode == "stuck":
            sys.stdout.write("stuck\\n")
            sys.stdout.flush()
            await asyncio.Event().wait()

    raise SystemExit(run(main))
"""


def program(mode: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), mode], stdout=subprocess.PIPE, text=True
    )


def next_line(process: subprocess.Popen[str], wanted: str) -> None:
    """Read on to this line; the lines of the log are on the same stream."""
    assert process.stdout is not None
    assert any(line.strip() == wanted for line in process.stdout)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("mode", ["plain", "guarded"])
def test_a_signal_ends_the_process_in_order(mode: str, number: signal.Signals) -> None:
    with program(mode) as process:
        next_line(process, "ready")
        process.send_signal(number)
        assert process.wait(30) == 0


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_process_at_once(second: signal.Signals) -> None:
    with program("stuck") as process:
        next_line(process, "ready")
        process.send_signal(signal.SIGTERM)
        next_line(process, "stuck")
        process.send_signal(second)
        assert process.wait(30) == 128 + second


def test_a_background_task_that_fails_ends_the_process_with_1() -> None:
    with program("crash") as process:
        assert process.wait(30) == 1


def test_a_startup_error_is_one_line_and_exit_code_1() -> None:
    with program("startup error") as process:
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "PORT=1: taken" in output
    assert "Traceback" not in output
