"""Every class, method and parameter that FEDn documents of its combiner package is there."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from combiner.modelservice import ModelService, ModelServiceServicer
from combiner.server import Combiner, Role, role_to_proto_role

from fedcombiner.servicekit.errors import InvalidArgument

LINES = [
    line
    for line in (Path(__file__).parent / "seed_api.txt").read_text().splitlines()
    if line and not line.startswith("#")
]
LINE = re.compile(r"(?P<handler>await )?(?P<name>combiner\.\w+\.[\w.]+)(?:\((?P<parameters>.*)\))?")


def found(name: str) -> Any:
    package, module, *path = name.split(".")
    value: Any = importlib.import_module(f"{package}.{module}")
    for part in path:
        value = getattr(value, part)
    return value


def documented(parameters: str) -> dict[str, Any]:
    """The parameters of a line with their defaults, an empty mark for those that have none."""
    arguments = ast.parse(f"def f({parameters}): ...").body[0]
    assert isinstance(arguments, ast.FunctionDef)
    names = [argument.arg for argument in arguments.args.args]
    defaults = [ast.literal_eval(default) for default in arguments.args.defaults]
    return dict(zip(names, [inspect.Parameter.empty] * (len(names) - len(defaults)) + defaults, strict=True))


def signature(value: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    return {name: each for name, each in inspect.signature(value).parameters.items() if name != "self"}


@pytest.mark.parametrize("line", LINES)
def test_what_is_documented_is_there(line: str) -> None:
    match = LINE.fullmatch(line)
    assert match, line
    value = found(match["name"])
    assert isinstance(value, Enum) or value.__doc__, "it has no documentation"
    if match["parameters"] is not None:
        check_parameters(documented(match["parameters"]), signature(value))
        asynchronous = inspect.iscoroutinefunction(value) or inspect.isasyncgenfunction(value)
        assert asynchronous == bool(match["handler"])


def check_parameters(expected: dict[str, Any], there: dict[str, inspect.Parameter]) -> None:
    assert list(there)[: len(expected)] == list(expected)
    for name, default in expected.items():
        # Nothing that could be changed is a default here.
        assert there[name].default == (tuple(default) if isinstance(default, list) else default)
        assert there[name].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    for name in list(there)[len(expected) :]:
        assert there[name].default is not inspect.Parameter.empty, f"{name} is ours and needs a default"


def test_the_list_is_complete() -> None:
    """In number; a name that is missing in the code fails above."""
    assert len(LINES) == len(set(LINES)) == 76


def test_the_classes_are_what_is_documented() -> None:
    bases = {base.__name__ for base in inspect.getmro(Combiner)}
    assert {"CombinerServicer", "ReducerServicer", "ConnectorServicer", "ControlServicer"} <= bases
    assert issubclass(ModelService, ModelServiceServicer)


def test_roles_are_not_the_numbers_of_the_wire() -> None:
    assert {role.name: role.value for role in Role} == {"WORKER": 1, "COMBINER": 2, "REDUCER": 3, "OTHER": 4}
    assert [role_to_proto_role(role) for role in Role] == [0, 1, 2, 3]
    with pytest.raises(InvalidArgument, match=r"role: 2 is not valid; allowed: Role\.WORKER"):
        role_to_proto_role(2)  # type: ignore[arg-type]
