"""Writes docs/api.md: FEDn's documented Python API as it is here, from the docstrings of the code.

Usage: python -m tools.api_page
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Final

PAGE: Final = Path(__file__).parents[1] / "docs" / "api.md"
NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "combiner.server": ("Combiner", "Role", "role_to_proto_role"),
    "combiner.round": ("RoundController", "ModelUpdateError"),
    "combiner.modelservice": ("ModelService",),
    "combiner.interfaces": ("CombinerInterface", "Channel", "CombinerUnavailableError"),
    "combiner.connect": ("ConnectorCombiner", "Status"),
    "combiner.helpers": ("Helper", "NpzDictHelper", "NpzListHelper", "get_helper"),
}
INTRODUCTION: Final = """\
# Python API

<!-- Made by `make api` from the docstrings; do not edit. -->

The names of FEDn's package `fedn.network.combiner`, importable from `combiner`, with every method that its
documentation has. They are blocking faces of the services: for scripts and controllers that are written in
plain Python, without an event loop. To write a client see [your own model](your-own-model.md); from asyncio
use `fedcombiner.client`.

Handlers of rpcs are coroutines and asynchronous generators, which the server calls; **everything else
blocks** and may be called from any thread, in a notebook too.
"""
SECTIONS: Final = ("Args", "Returns", "Raises", "Attributes")


def page() -> str:
    """The whole page."""
    return "\n".join([INTRODUCTION, *(line for name in NAMES for line in _module(name))]).rstrip() + "\n"


def _module(name: str) -> Iterator[str]:
    module = importlib.import_module(name)
    yield from (f"## {name}", "", *_text(module), "")
    for member in NAMES[name]:
        value = getattr(module, member)
        yield from _class(value) if inspect.isclass(value) else _function(value, "###")


def _class(kind: type[Any]) -> Iterator[str]:
    plain = issubclass(kind, Enum | Exception) or getattr(kind, "_is_protocol", False)
    constructor = "" if plain or "__init__" not in vars(kind) else _signature(vars(kind)["__init__"])
    yield from (f"### class {kind.__name__}{constructor}", "", *_text(kind), "")
    if issubclass(kind, Enum):
        yield from (*(f"- `{each.name}` = {each.value}" for each in kind), "")
        return
    methods = [value for name, value in inspect.getmembers(kind, callable) if name[0] != "_"]
    if issubclass(kind, Exception):
        return
    for method in sorted(methods, key=_is_handler):
        yield from _function(method, "####")


def _function(function: Callable[..., Any], heading: str) -> Iterator[str]:
    mark = "await " if _is_handler(function) else ""
    yield from (f"{heading} {mark}{function.__name__}{_signature(function)}", "", *_text(function), "")


def _is_handler(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


def _signature(function: Callable[..., Any]) -> str:
    parts: list[str] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and "\\*" not in parts:
            parts.append("\\*")
        empty = parameter.default is inspect.Parameter.empty
        parts.append(parameter.name if empty else f"{parameter.name}={parameter.default!r}")
    return f"({', '.join(parts)})"


def _text(value: object) -> Iterator[str]:
    """A docstring in Markdown: its sections become lists, and indented examples code."""
    section = ""
    for line in (inspect.getdoc(value) or "").splitlines():
        if line.removesuffix(":") in SECTIONS and line.endswith(":"):
            section = line
            yield from (f"**{line}**", "")
        elif section and line.startswith("    "):
            yield line[4:] if section == "Returns:" else _item(line[4:])
        else:
            section = "" if line else section
            yield line


def _item(line: str) -> str:
    name = re.match(r"(\w+(?:, \w+)*): ", line)
    if name:
        return f"- `{name[1]}`: {line[name.end() :]}"
    return f"  {line.strip()}" if line.startswith(" ") else line


if __name__ == "__main__":
    PAGE.write_text(page())
