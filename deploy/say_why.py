"""Say why a stack did not start, in one line for each thing: `python3 deploy/say_why.py FILE...`.

For `make up`, after `docker compose up` has failed: a port that another process has, with the setting that
names it, and the last words of whatever ended or is not healthy. Ends with 1.
"""

import errno
import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any


def main() -> None:
    files = [word for name in sys.argv[1:] for word in ("-f", name)]
    compose = ["docker", "compose", *files]
    states = {state["Service"]: state for state in json_lines([*compose, "ps", "--all", "--format", "json"])}
    lines = [*taken_ports(compose, states), *last_words(compose, states, "unhealthy")]
    # What was only on its way when something else stopped it all is not why.
    lines = lines or [*last_words(compose, states, "starting")]
    sys.exit("\n".join(lines) or "docker compose said above what is wrong; docs/deploy.md explains it")


def taken_ports(compose: list[str], states: dict[str, Any]) -> Iterator[str]:
    """Of containers that were made, and could not be started."""
    set_by = settings_of_ports(compose)
    [config] = json_lines([*compose, "config", "--format", "json"])
    for name, service in config["services"].items():
        if states.get(name, {}).get("State") != "created":
            continue
        for port in service.get("ports", ()):
            where = (port.get("host_ip", ""), int(port["published"]))
            if is_taken(*where):
                setting = set_by.get((name, port["target"]), "its port")
                yield f"{name}: another process has port {where[1]}: set {setting} in deploy/.env"


def settings_of_ports(compose: list[str]) -> dict[tuple[str, int], str]:
    """The variables that say where a service's ports are published."""
    [raw] = json_lines([*compose, "config", "--no-interpolate", "--format", "json"])
    ports = [
        (name, str(port)) for name, service in raw["services"].items() for port in service.get("ports", ())
    ]
    found = [(name, re.fullmatch(r"\$\{(\w+)\}:(\d+)", port)) for name, port in ports]
    return {(name, int(match[2])): match[1] for name, match in found if match}


def is_taken(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


def last_words(compose: list[str], states: dict[str, Any], health: str) -> Iterator[str]:
    """Of what ended with an error, or has this health."""
    for name, state in states.items():
        ended = state["State"] in ("exited", "restarting") and state["ExitCode"]
        if not ended and state["Health"] != health:
            continue
        log = output([*compose, "logs", "--no-log-prefix", "--no-color", "--tail", "50", name]).splitlines()
        what = f"ended with {state['ExitCode']}" if ended else "is not healthy"
        yield f"{name} {what}: {next(filter(None, map(telling, reversed(log))), 'it said nothing')}"


def telling(line: str) -> str:
    """A line of a log, if it says what is wrong: of ours, warnings and errors do."""
    try:
        said = json.loads(line)
    except ValueError:
        return line.strip()
    if not isinstance(said, dict) or said.get("level") not in ("warning", "error", "critical"):
        return ""
    return ": ".join(str(said[key]) for key in ("event", "error", "reason") if said.get(key))


def json_lines(command: list[str]) -> list[Any]:
    text = output(command)
    try:
        return [json.loads(text)]
    except ValueError:
        return [json.loads(line) for line in text.splitlines()]


def output(command: list[str]) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
