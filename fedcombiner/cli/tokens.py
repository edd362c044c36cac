"""`combiner token`: who may call what, by the tokens that they have."""

from __future__ import annotations

import re
import sys
from typing import Annotated, Final

import typer

from fedcombiner.access.roles import Role
from fedcombiner.access.secret import new_token
from fedcombiner.cli import rows
from fedcombiner.cli.output import call, options, print_json, show_list, show_one
from fedcombiner.cli.remote import remote

app = typer.Typer(help="Make, list and revoke tokens (docs/access.md).", no_args_is_help=True)

_LIFETIME: Final = re.compile(r"([0-9]{1,6})([mhdw])")
_UNITS: Final = {"m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


def _seconds(text: str) -> int:
    if text == "never":
        return 0
    match = _LIFETIME.fullmatch(text)
    seconds = int(match[1]) * _UNITS[match[2]] if match else 0
    if not 0 < seconds < 1 << 32:
        raise typer.BadParameter("say a number with m, h, d or w, such as 30d, or never")
    return seconds


@app.command()
def generate() -> None:
    """Print a new random token for OPERATOR_TOKEN_FILE. No server is needed, and none knows it yet.

    Example: combiner token generate > operator-token && combiner serve --operator-token-file operator-token
    """
    sys.stdout.write(f"{new_token()}\n")


@app.command()
@remote
def create(
    context: typer.Context,
    role: Annotated[Role, typer.Option(help="What its bearer may be.")],
    name: Annotated[str, typer.Option(help="A note for people, such as whose it is.")] = "",
    client: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="The only client that its bearer may be; repeatable: name and id of FEDn clients.",
        ),
    ] = None,
    expires: Annotated[
        str, typer.Option(metavar="TIME", help="How long it is good: 90m, 12h, 30d, 4w or never.")
    ] = "never",
) -> None:
    """Make a token and print it, this once. What else is known of it goes to stderr.

    Examples:
      combiner token create --role client --client alice --expires 30d
      DISCOVERY_TOKEN=$(combiner token create --role combiner)
    """
    lifetime = _seconds(expires)
    made = call(
        context,
        lambda operator: operator.create_token(
            role.value, name=name, clients=client or (), lifetime=lifetime
        ),
    )
    row = rows.token(made.token)
    if options(context).as_json:
        print_json({**row, "token": made.secret})
        return
    sys.stdout.write(f"{made.secret}\n")
    ends = f"expires {row['expires_at']}" if row["expires_at"] else "does not expire"
    sys.stderr.write(f"token {row['token_id']} of role {role.value} {ends}; it is not shown again\n")


@app.command("list")
@remote
def list_(context: typer.Context) -> None:
    """List tokens, oldest first: what is known of them, not the tokens.

    Example: combiner token list --json | jq 'select(.state == "good")'
    """
    found = call(context, lambda operator: operator.list_tokens())
    columns = ("token_id", "role", "name", "clients", "state", "created_at", "expires_at")
    empty = "No token yet but the operator's first: `combiner token create --role ROLE`."
    show_list(context, [rows.token(token) for token in found], columns, empty)


@app.command()
@remote
def revoke(context: typer.Context, token_id: str) -> None:
    """Refuse a token from now on; its streams end within seconds.

    Example: combiner token revoke 3f9c0a1b2c4d
    """
    show_one(context, rows.token(call(context, lambda operator: operator.revoke_token(token_id))))
