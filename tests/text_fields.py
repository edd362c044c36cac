"""Where messages take text, found in their descriptors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

from google.protobuf.descriptor import Descriptor, FieldDescriptor

Path: TypeAlias = tuple[FieldDescriptor, ...]


def text_fields(kind: Descriptor, path: Path = ()) -> Iterator[Path]:
    """The ways to each text field of a message and of the messages in it."""
    for field in kind.fields:
        if field.type == FieldDescriptor.TYPE_STRING:
            yield (*path, field)
        elif field.message_type is not None:
            yield from text_fields(field.message_type, (*path, field))


def put_text(message: Any, path: Path, text: str) -> None:
    """Set the field at the end of the path; in a list or a map, of one more entry."""
    field, rest = path[0], path[1:]
    if rest and field.message_type.GetOptions().map_entry:
        getattr(message, field.name)[text if rest[0].name == "key" else "rounds"] = text
    elif field.is_repeated:
        values = getattr(message, field.name)
        put_text(values.add(), rest, text) if rest else values.append(text)
    elif rest:
        put_text(getattr(message, field.name), rest, text)
    else:
        setattr(message, field.name, text)
