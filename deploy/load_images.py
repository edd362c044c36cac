"""Copy the images of the stack into a cluster: `python3 deploy/load_images.py COMMAND...`.

COMMAND copies the image that is named behind it, such as `kind load docker-image`. Ours are copied under
PREVIOUS_TAG, too, so that an upgrade has something to come from: as they are, unless that tag has images.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    previous = os.environ.get("PREVIOUS_TAG", "")
    names = set(described())
    for name in sorted(ours(names) if previous else ()):
        older = f"{name.rpartition(':')[0]}:{previous}"
        if subprocess.run(["docker", "image", "inspect", older], capture_output=True).returncode:
            subprocess.run(["docker", "tag", name, older], check=True)
        names.add(older)
    for name in sorted(names):
        subprocess.run([*sys.argv[1:], name], check=True)
        sys.stdout.write(f"{name}\n")


def described() -> list[str]:
    files = [word for name in ("docker-compose.yml", "compose.demo.yml") for word in ("-f", str(HERE / name))]
    said = subprocess.run(
        ["docker", "compose", *files, "config", "--format", "json"], check=True, stdout=subprocess.PIPE
    )
    services = json.loads(said.stdout)["services"]
    return [one["image"] for one in services.values()]


def ours(names: set[str]) -> set[str]:
    prefix = os.environ.get("IMAGE_PREFIX", "federated-combiner")
    return {name for name in names if name.startswith(f"{prefix}/")}


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
