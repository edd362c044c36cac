"""Does the suite notice? `python -m tests.faults.mutations`.

Each mutation, in a copy of the source, must make some cases of the matrix red that are green without it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
SOURCES: Final = ("fedcombiner", "services", "deploy", "tests")
COMBINER: Final = Path("services/combiner/combiner")
LIMIT_S: Final = 900


@dataclass(frozen=True)
class Mutation:
    """`old` in `file` becomes `new`; the cases with these words must fail."""

    name: str
    file: Path
    old: str
    new: str
    only: str


MUTATIONS: Final = (
    Mutation(
        "the duplicate check is skipped",
        COMBINER / "adapters/lua/lib/3_jobs.lua",
        "  if is_same(rec, id) then return {'repeated', id, rec[REASON]} end\n",
        "",
        "SIGKILL of combiner after jobs.receive",
    ),
    Mutation(
        "the answer is sent before the journal is written",
        COMBINER / "clients" / "inbox.py",
        "            finished, _ = await asyncio.wait([done], timeout=hold_s)\n",
        "            finished, _ = await asyncio.wait([done], timeout=0)\n",
        "SIGKILL of combiner before jobs.receive",
    ),
    Mutation(
        "the commit does not look at the token",
        COMBINER / "adapters/lua/job_commit.lua",
        "local lost = guard()\nif lost then return lost end\n",
        "",
        "SIGSTOP of combiner before jobs.commit",
    ),
)


def copy_of(mutation: Mutation | None, directory: Path) -> Path:
    """The source in a directory of its own, mutated.

    Raises ValueError: it is no longer as the mutation thinks.
    """
    for name in SOURCES:
        shutil.copytree(ROOT / name, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
    if mutation is not None:
        file = directory / mutation.file
        text = file.read_text("utf-8")
        if text.count(mutation.old) != 1:
            raise ValueError(f"{mutation.name}: {mutation.file} does not hold this once: {mutation.old!r}")
        file.write_text(text.replace(mutation.old, mutation.new), "utf-8")
    return directory


def is_green(source: Path, only: str) -> bool:
    """Whether these single cases of the matrix pass on the source in a directory."""
    roots = (source, source / "services" / "combiner", source / "services" / "modelstore")
    command = (
        sys.executable,
        "-m",
        "tests.faults.matrix",
        "--part",
        "single",
        "--stacks",
        "1",
        "--only",
        only,
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, roots))}
    done = subprocess.run(command, cwd=source, env=env, timeout=LIMIT_S, check=False)
    return done.returncode == 0


def main() -> None:
    missed = []
    for mutation in MUTATIONS:
        for mutated in (None, mutation):
            with tempfile.TemporaryDirectory(prefix="fc-mutation-") as directory:
                print(f"\n{mutation.name if mutated else 'as it is'}: {mutation.only}", flush=True)
                green = is_green(copy_of(mutated, Path(directory)), mutation.only)
            if green is (mutated is not None):
                missed.append(mutation.name if mutated else f"without a mutation: {mutation.only}")
    print("\nevery mutation was noticed" if not missed else f"\nnot as it should be: {'; '.join(missed)}")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
