"""The combiner as a process of its own."""

import sys

from combiner.app import serve
from combiner.settings import CombinerSettings
from fedcombiner.servicekit import logs
from fedcombiner.servicekit.lifecycle import run
from fedcombiner.servicekit.settings import load_or_exit


def main() -> None:
    settings = load_or_exit(CombinerSettings)
    logs.configure(settings.log_format, settings.log_level, "combiner")
    sys.exit(run(lambda stop: serve(settings, stop)))


if __name__ == "__main__":
    main()
