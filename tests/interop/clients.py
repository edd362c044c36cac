"""FEDn's own client as a process, told what it needs by its settings file and the environment only."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

import yaml

from tests.faults.processes import Program
from tests.interop.control import Control
from tests.interop.environments import environment
from tests.interop.eras import Era


class FednClient(Program):
    """One client in a directory and a session of its own, for it starts others that train."""

    def __init__(self, era: Era, directory: Path, discovery: str, control: Control) -> None:
        place = directory / era.name
        place.mkdir(parents=True, exist_ok=True)
        host, _, port = discovery.rpartition(":")
        settings = place / "client.yaml"
        told = {"name": era.client_name, "client_id": era.name}
        settings.write_text(yaml.safe_dump({**told, "discover_host": host, "discover_port": int(port)}))
        binaries = environment(era) / "bin"
        # By the interpreter: the first line of a script cannot hold a path with spaces.
        argv = [str(binaries / "python"), str(binaries / "fedn"), *era.command, "--init", str(settings)]
        env = {
            "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "TMPDIR": str(place),
            "NO_PROXY": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "INTEROP_NAME": era.name,
            "INTEROP_INDEX": str(era.index),
            "INTEROP_CONTROL": str(control.directory),
        }
        super().__init__(era.name, argv, directory, "", env, place)
        self.era = era
        self.log = directory / f"{era.name}.log"

    def signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    @property
    def started(self) -> bool:
        return self._process is not None

    @property
    def exit_code(self) -> int | None:
        return self._process.returncode if self._process else None
