"""The modelstore as a process of its own."""

import sys

from fedcombiner.modelstorage.memory import keep_freed_chunks
from fedcombiner.servicekit import logs
from fedcombiner.servicekit.lifecycle import run
from fedcombiner.servicekit.settings import load_or_exit
from modelstore.app import serve
from modelstore.settings import ModelstoreSettings


def main() -> None:
    settings = load_or_exit(ModelstoreSettings)
    keep_freed_chunks()
    logs.configure(settings.log_format, settings.log_level, "modelstore")
    sys.exit(run(lambda stop: serve(settings, stop)))


if __name__ == "__main__":
    main()
