"""FEDn's roles as its Python names them, and as they are on the wire."""

from __future__ import annotations

from enum import Enum
from typing import Final

from fedcombiner.servicekit.errors import InvalidArgument
from fedcombiner.wire.eras import ERAS
from fedcombiner.wire.pb import fedn_pb2

WIRE: Final = ERAS["0.5"]
"""The era of the wire that FEDn's documentation of these names is about: 0.6 is part of it."""


class Role(Enum):
    """Enum for combiner roles. Not the numbers of the wire: `role_to_proto_role` gives those."""

    WORKER = 1
    COMBINER = 2
    REDUCER = 3
    OTHER = 4


_PROTO_ROLES: Final = {
    Role.WORKER: fedn_pb2.CLIENT,
    Role.COMBINER: fedn_pb2.COMBINER,
    Role.REDUCER: fedn_pb2.REDUCER,
    Role.OTHER: fedn_pb2.OTHER,
}


def role_to_proto_role(role: Role) -> fedn_pb2.Role.ValueType:
    """Convert a Role to a proto Role: the number that FEDn 0.6 has on the wire, from WORKER 0 to OTHER 3.

    Raises:
        InvalidArgument: it is no Role.
    """
    if not isinstance(role, Role):
        raise InvalidArgument("role", role, ", ".join(str(each) for each in Role))
    return WIRE.write_role(_PROTO_ROLES[role])
