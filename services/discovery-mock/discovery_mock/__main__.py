"""The discovery as a process of its own."""

import sys

from discovery_mock.app import serve
from discovery_mock.settings import DiscoverySettings
from fedcombiner.servicekit import logs
from fedcombiner.servicekit.lifecycle import run
from fedcombiner.servicekit.settings import load_or_exit


def main() -> None:
    settings = load_or_exit(DiscoverySettings)
    logs.configure(settings.log_format, settings.log_level, "discovery-mock")
    sys.exit(run(lambda stop: serve(settings, stop)))


if __name__ == "__main__":
    main()
