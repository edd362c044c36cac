"""A service as its own process, with faults: `python -m tests.faults.service combiner|modelstore`.

The settings are those of the service, in the environment; only the object graph is told to put the
fault-injecting adapters around the back ends.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable, Mapping

from combiner import app as combiner_app
from combiner.adapters import limits
from combiner.app import CombinerApp
from combiner.settings import CombinerSettings
from modelstore import app as modelstore_app
from modelstore.settings import ModelstoreSettings

from fedcombiner.modelstorage.servicer import ModelServiceServicer
from fedcombiner.servicekit import logs
from fedcombiner.servicekit.lifecycle import Stop, run
from fedcombiner.servicekit.settings import load_or_exit
from tests.faults.inject import FaultyStore, Injector

WITH_MODELS = "FAULTS_WITH_MODELS"
# Which layout of the state this process is to know, as a later version would.
LAYOUT = "FAULTS_LAYOUT"


async def _combiner(stop: Stop, injector: Injector) -> None:
    limits.SCHEMA = int(os.environ.get(LAYOUT, limits.SCHEMA))
    services = _with_models if os.environ.get(WITH_MODELS) else _own
    await combiner_app.serve(load_or_exit(CombinerSettings), stop, services=services, wrap=injector.wrap)


def _own(app: CombinerApp) -> Mapping[str, object]:
    return app.servicers


def _with_models(app: CombinerApp) -> Mapping[str, object]:
    """Without a gateway that routes by path, clients find everything at the combiner."""
    return {**app.servicers, "ModelService": ModelServiceServicer(app.store)}


async def _modelstore(stop: Stop, injector: Injector) -> None:
    settings = load_or_exit(ModelstoreSettings)
    await modelstore_app.serve(settings, stop, wrap=lambda store: FaultyStore(store, injector))


SERVICES: Mapping[str, Callable[[Stop, Injector], Awaitable[None]]] = {
    "combiner": _combiner,
    "modelstore": _modelstore,
}


async def _serve(role: str, stop: Stop) -> None:
    injector = await Injector.connect(role)
    try:
        await SERVICES[role](stop, injector)
    finally:
        await injector.close()


def main() -> None:
    role = sys.argv[1]
    logs.configure("json", "info", role)
    sys.exit(run(lambda stop: _serve(role, stop)))


if __name__ == "__main__":
    main()
