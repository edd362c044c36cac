"""Serve one set of handlers under every name a client may call it by.

FEDn's services were published in the package `grpc` up to 0.8 and in `fedn` from 0.9 on, with the same
messages; ours are in `combiner.v1`. Method kinds and message types come from the descriptors, so a servicer
is any object with coroutine methods (or async generators, for streamed answers) named like its rpcs.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias, TypeVar

import grpc
import grpc.aio
from google.protobuf.descriptor import FileDescriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass

from fedcombiner.servicekit.incoming import SizedReader
from fedcombiner.wire.pb import fedn_pb2
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2, events_pb2, tokens_pb2, upkeep_pb2
from fedcombiner.wire.sizes import MAX_REQUEST_BYTES

OLD_PACKAGE = "grpc"
NEW_PACKAGE = "fedn"
OWN_PACKAGE = "combiner.v1"
OWN_FILES: tuple[FileDescriptor, ...] = (
    combiner_pb2.DESCRIPTOR,
    events_pb2.DESCRIPTOR,
    tokens_pb2.DESCRIPTOR,
    upkeep_pb2.DESCRIPTOR,
)

_WITH_PACKAGE = "__wire_with_package__"
_RAW = "__wire_raw_messages__"
_Method = TypeVar("_Method", bound=Callable[..., Any])
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_KINDS: Mapping[tuple[bool, bool], Callable[..., _Handler]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def with_package(method: _Method) -> _Method:
    """Mark a servicer's method that must know the package it was called in.

    It is then called as `method(request, context, package=...)`; what a package says about the client is the
    business of `fedcombiner.wire.eras`.
    """
    setattr(method, _WITH_PACKAGE, True)
    return method


def raw_messages(method: _Method) -> _Method:
    """Mark a servicer's method that takes and gives serialized messages as `bytes`."""
    setattr(method, _RAW, True)
    return method


def add_services(server: grpc.aio.Server, servicers: Mapping[str, object]) -> None:
    """Serve them as `Services` does."""
    server.add_generic_rpc_handlers((Services(servicers),))


def service_names(services: Mapping[str, object]) -> tuple[str, ...]:
    """Full names under which `Services` serves these services, for reflection and health."""
    return tuple(f"{package}.{name}" for name in services for package in _find_service(name)[1])


class Services(grpc.GenericRpcHandler):
    """Servicers by the short name of their service (`Connector`, `ModelService`, `Jobs`, ...), for a server.

    A FEDn service is served as `grpc.X` and as `fedn.X`, one of ours as `combiner.v1.X`. An rpc that the
    servicer has no method for answers UNIMPLEMENTED, as FEDn's own server does. Servicers must not inherit
    from the generated base classes, which define every method.

    All methods are in one look-up. If each were registered, grpc.aio would go through all of them per call.

    Raises:
        KeyError: no proto file defines a service of that name, or a method has no row in `wire.sizes`.
    """

    def __init__(self, servicers: Mapping[str, object]) -> None:
        self._handlers: dict[str, _Handler] = {}
        for name, servicer in servicers.items():
            descriptor, packages = _find_service(name)
            for package in packages:
                for method in descriptor.methods:
                    self._handlers[f"/{package}.{name}/{method.name}"] = _handler(method, servicer, package)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "_Handler | None":
        return self._handlers.get(handler_call_details.method)


def _find_service(name: str) -> tuple[ServiceDescriptor, tuple[str, ...]]:
    for file in OWN_FILES:
        if name in file.services_by_name:
            return file.services_by_name[name], (OWN_PACKAGE,)
    return fedn_pb2.DESCRIPTOR.services_by_name[name], (OLD_PACKAGE, NEW_PACKAGE)


def _handler(method: MethodDescriptor, servicer: object, package: str) -> _Handler:
    make = _KINDS[method.client_streaming, method.server_streaming]
    behaviour: Callable[..., Any] = getattr(servicer, method.name, None) or _not_implemented
    raw = getattr(behaviour, _RAW, False)
    max_bytes = MAX_REQUEST_BYTES[method.containing_service.name][method.name]
    if getattr(behaviour, _WITH_PACKAGE, False):
        behaviour = partial(behaviour, package=package)
    if raw:
        return make(behaviour, request_deserializer=SizedReader(None, max_bytes))
    return make(
        behaviour,
        request_deserializer=SizedReader(GetMessageClass(method.input_type).FromString, max_bytes),
        response_serializer=GetMessageClass(method.output_type).SerializeToString,
    )


async def _not_implemented(_request: object, context: _Context) -> None:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not implemented!")
