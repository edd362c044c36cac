"""Build every image that the compose files name: `python3 deploy/build_images.py FILE...`.

For `docker build` as it is, also without BuildKit and Buildx, which `docker compose build` wants. What to
build is in the compose files; DOCKER_BUILD_FLAGS in the environment is handed on.
"""

import json
import os
import shlex
import subprocess
import sys


def main() -> None:
    files = [word for name in sys.argv[1:] for word in ("-f", name)]
    described = subprocess.run(
        ["docker", "compose", *files, "--profile", "*", "config", "--format", "json"],
        check=True,
        stdout=subprocess.PIPE,
    )
    services = json.loads(described.stdout)["services"].values()
    images = {service["image"]: service["build"] for service in services if "build" in service}
    for image, build in sorted(images.items()):
        build_image(image, build)


def build_image(image: str, build: dict) -> None:
    arguments = {"REVISION": revision(build["context"]), **build["args"]}
    words = ["docker", "build", *shlex.split(os.environ.get("DOCKER_BUILD_FLAGS", "")), "--tag", image]
    words += [word for key, value in arguments.items() for word in ("--build-arg", f"{key}={value}")]
    words += ["--file", os.path.join(build["context"], build["dockerfile"]), build["context"]]
    done = subprocess.run([*words, "--quiet"], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{image} could not be built: {shlex.join(words)} shows where")
    sys.stdout.write(f"{image}  {done.stdout.strip()[:19]}\n")


def revision(directory: str) -> str:
    words = ["git", "-C", directory, "rev-parse", "HEAD"]
    found = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return found.stdout.strip() or "unknown"


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
