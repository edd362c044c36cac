"""The operator's side: jobs, sessions, models and clients of a combiner, on one channel."""

from __future__ import annotations

import asyncio
import tempfile
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from fedcombiner.client.arrays import write_arrays
from fedcombiner.client.errors import ServerUnreachable, rpc_errors
from fedcombiner.client.link import Link, token_metadata
from fedcombiner.client.patience import Progress
from fedcombiner.client.transfer import Sink, download, upload
from fedcombiner.servicekit.backoff import Backoff, retry
from fedcombiner.servicekit.errors import Unavailable
from fedcombiner.wire.pb import fedn_pb2, fedn_pb2_grpc
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2 as pb
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2_grpc

if TYPE_CHECKING:
    from fedcombiner.wire.pb.combiner.v1 import combiner_pb2_grpc as stubs
    from fedcombiner.wire.pb.fedn_pb2_grpc import ControlAsyncStub

T = TypeVar("T")
Event = TypeVar("Event", pb.JobEvent, pb.SessionEvent)

ENDED: Final = frozenset({pb.SUCCEEDED, pb.FAILED, pb.CANCELLED})
_TIMEOUT: Final = 10.0  # seconds an answer may take
_BACKOFF: Final = Backoff(0.2, 3.0)
