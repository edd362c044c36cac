"""docs/cli.md says what the command has, no less and no more; each command's help has an example."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from fedcombiner.cli.main import app

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"
# Of every command; the page says so once.
COMMON = {"--server", "--json", "--ca", "--tls", "--help"}


def commands(command: Any, path: str = "combiner") -> Iterator[tuple[str, Any]]:
    """Those that do something, by what is typed. Typer may bring a Click of its own: no class is named."""
    inner = getattr(command, "commands", None)
    if inner is None:
        yield path, command
        return
    for name, one in inner.items():
        yield from commands(one, f"{path} {name}")


def parameters(command: Any, kind: str) -> list[Any]:
    """`kind`: option or argument."""
    return [parameter for parameter in command.params if parameter.param_type_name == kind]


COMMANDS = dict(commands(typer.main.get_command(app)))


def rows() -> dict[str, tuple[str, str]]:
    """Command -> its arguments as written, and the text of its row."""
    found = {}
    for line in PAGE.read_text("utf-8").splitlines():
        match = re.match(r"\| `(combiner(?: [a-z-]+)+)((?: [^`]*)?)` \| (.*) \|$", line)
        if match:
            found[match[1]] = (match[2].strip(), match[3])
    return found


def options(command: Any) -> set[str]:
    """The long names, `--users` for `--users/--no-users`."""
    found = parameters(command, "option")
    return {next(name for name in option.opts if name.startswith("--")) for option in found}


def test_every_command_has_a_row_in_docs_cli_md_and_every_row_a_command() -> None:
    assert set(rows()) == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_row_names_every_option_and_argument(name: str) -> None:
    arguments, text = rows().get(name, ("", ""))
    said = set(re.findall(r"`(--[a-z-]+)", text))
    assert options(COMMANDS[name]) - COMMON == said - COMMON, f"in docs/cli.md, in the row of `{name}`"
    names = [argument.name.upper() for argument in parameters(COMMANDS[name], "argument")]
    assert re.findall(r"[A-Z_]+", arguments) == names


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example_that_could_be_typed(name: str) -> None:
    command = COMMANDS[name]
    head, _, examples = (command.help or "").partition("Example")
    assert head.strip(), f"`{name}` needs a docstring"
    assert f"{name}" in examples, f"the docstring of `{name}` needs an example of it"
    typed = [part for part in re.split(r"\n|&&|\||\$\(", examples) if name in part]
    used = {option for part in typed for option in re.findall(r"(?<!\S)(--[a-z-]+)", part)}
    known = {
        option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
    }
    assert used <= known | COMMON


def test_the_shell_completes_commands_and_options() -> None:
    def completed(words: str) -> list[str]:
        environment = {
            "_COMBINER_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split(" ")) - 1),
        }
        result = CliRunner().invoke(app, [], prog_name="combiner", env=environment)
        return result.stdout.split()

    assert completed("combiner model pr") == ["prune"]
    assert {"--keep", "--keep-best"} <= set(completed("combiner model prune --keep"))
