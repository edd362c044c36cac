"""A virtual environment for each release of FEDn, made once, from pinned packages and wheels only.

`python -m tests.interop.environments` makes those that are not there.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from tests.interop.eras import ERAS, VERSIONS, Era

DIRECTORY: Final = Path(__file__).parents[2] / "build" / "interop"
UV: Final = Path(sys.executable).with_name("uv")


def environment(era: Era) -> Path:
    return DIRECTORY / f"fedn-{era.version}"


def make_all() -> float:
    """Those that are missing or whose requirements have changed. Returns the seconds that it took."""
    begun = time.monotonic()
    for version in VERSIONS:
        _make(next(era for era in ERAS if era.version == version))
    return time.monotonic() - begun


def _make(era: Era) -> None:
    place, begun = environment(era), time.monotonic()
    # Written last: an environment without it is not whole.
    stamp = place / "requirements.txt"
    wanted = era.requirements.read_text("utf-8")
    if stamp.exists() and stamp.read_text("utf-8") == wanted:
        return
    shutil.rmtree(place, ignore_errors=True)
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    _uv("venv", "--python", sys.executable, str(place))
    python = str(place / "bin" / "python")
    _uv("pip", "install", "--python", python, "--only-binary", ":all:", "-r", str(era.requirements))
    stamp.write_text(wanted, "utf-8")
    print(f"environment of FEDn {era.version}: {time.monotonic() - begun:.1f} s", flush=True)


def _uv(*words: str) -> None:
    # As pip does: where packages come through a proxy, its authority is the system's.
    done = subprocess.run([UV, "--quiet", "--system-certs", *words], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"uv {' '.join(words)}: {done.stderr}")


if __name__ == "__main__":
    print(f"all environments: {make_all():.1f} s")
