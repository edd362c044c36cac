"""The table of docs/access.md, made from the table in the code: `python -m fedcombiner.access.page`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from fedcombiner.access.roles import Role
from fedcombiner.access.table import ENDPOINTS, RPCS, Access
from fedcombiner.wire.registry import NEW_PACKAGE, OLD_PACKAGE

PAGE: Final = Path("docs/access.md")
BEGIN: Final = "<!-- made by `python -m fedcombiner.access.page` -->\n"
END: Final = "<!-- end of what is made -->\n"

_TITLES: Final[Mapping[str, str]] = {
    "discovery": "HTTP of the discovery, port 8092",
    "operations": "HTTP of every service, port 9464",
}


def with_tables(page: str) -> str:
    """The page with its made part made anew. Raises ValueError if the marks are not there once each."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in after:
        raise ValueError(f"{PAGE}: the marks of the part that is made are not there, once each and in order")
    return f"{before}{BEGIN}\n{tables()}\n{END}{after}"


def tables() -> str:
    """Every rpc and every endpoint by role, as Markdown."""
    parts = [_table("gRPC", _rpcs())]
    parts += [_table(_TITLES[listener], rows) for listener, rows in ENDPOINTS.items()]
    return "\n".join(parts)


def _rpcs() -> Mapping[str, Access]:
    """FEDn's are served under two names, and shown once."""
    old, new = f"/{OLD_PACKAGE}.", f"/{NEW_PACKAGE}."
    return {
        method.removeprefix(new).lstrip("/"): access
        for method, access in RPCS.items()
        if not (method.startswith(old) and method.replace(old, new) in RPCS)
    }


def _table(title: str, rows: Mapping[str, Access]) -> str:
    return "\n".join(
        (f"### {title}\n", f"| | {' | '.join(Role)} |", "|---|" + ":-:|" * len(Role), *_lines(rows), "")
    )


def _lines(rows: Mapping[str, Access]) -> Iterator[str]:
    for name, access in rows.items():
        cells = ["anyone"] * len(Role) if access.anyone else [_cell(role, access) for role in Role]
        yield f"| `{name}` | {' | '.join(cells)} |"


def _cell(role: Role, access: Access) -> str:
    return "✓" if role in access.roles else ""


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text("utf-8")), "utf-8")
