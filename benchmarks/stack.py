"""The standalone stack as a process of its own, for benchmarks that measure it from outside."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

CHILD = """
import asyncio, json, sys
from pathlib import Path
from modelstore.settings import ModelstoreSettings
from fedcombiner.modelstorage.memory import keep_freed_chunks
from fedcombiner.servicekit import logs
from fedcombiner.servicekit.lifecycle import Stop, run
from fedcombiner.standalone.app import Standalone, StandaloneSettings

async def main(stop: Stop) -> None:
    data = Path(sys.argv[1])
    models = ModelstoreSettings.load(data=data / "models", scratch=data / "scratch")
    settings = StandaloneSettings(
        data_dir=data, port=0, discovery_port=0, metrics_port=0, modelstore=models
    )
    async with Standalone(settings, stop) as stack:
        print(json.dumps({"address": stack.address, "metrics": stack.metrics_url}), flush=True)
        await stop.wait()

keep_freed_chunks()
logs.configure("console", "warning", "bench")
sys.exit(run(main))
"""


@dataclass
class Stack:
    address: str
    metrics: str
    process: psutil.Process

    def rss(self) -> int:
        """Bytes, of the stack alone: its embedded Redis is a process of its own."""
        return int(self.process.memory_info().rss)

    def reset_peak(self) -> None:
        """Linux: the peak counts from here on (proc(5), clear_refs)."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def peak(self) -> int:
        return peak_bytes(self.process.pid)


def peak_bytes(pid: int | str) -> int:
    """The most memory that a process has had; `self` is this one. Linux."""
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


@asynccontextmanager
async def running_stack(settings: Mapping[str, str] | None = None) -> AsyncIterator[Stack]:
    """A fresh stack on free ports; its data goes with it. `settings` are those of its store, by variable."""
    with tempfile.TemporaryDirectory(prefix="fc-bench-") as data:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", CHILD, data),
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, **(settings or {})},
        )
        try:
            assert child.stdout is not None
            line = json.loads(await asyncio.wait_for(child.stdout.readline(), 30))
            yield Stack(line["address"], line["metrics"], psutil.Process(child.pid))
        finally:
            child.terminate()
            await child.wait()
