"""`combiner storage`: the object store of a stack, made ready and kept tidy."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from fedcombiner.cli.output import JOB_FAILED, UNREACHABLE, USAGE, fail, options, print_json

if TYPE_CHECKING:
    from fedcombiner.modelstorage.s3.bucket import S3Location
    from fedcombiner.storagesetup.policies import Role
    from fedcombiner.storagesetup.setup import User

NO_MINIO: Final = "pip install 'federated-combiner[storage-setup]'"
_ACCESS_KEY_CHARS: Final = (3, 20)
_SECRET_CHARS: Final = (8, 40)

app = typer.Typer(
    help="Make the object store ready for the services, and tidy it up. Takes the services' settings.",
    no_args_is_help=True,
)


class RoleName(StrEnum):
    """A service that has a user at the object store."""

    combiner = "combiner"
    modelstore = "modelstore"
    discovery = "discovery"


Url = Annotated[str, typer.Option(envvar="MINIO_URL", metavar="URL", help="http(s)://HOST:PORT of MinIO.")]
Bucket = Annotated[str, typer.Option(envvar="MINIO_BUCKET", help="The one bucket of the stack.")]
Region = Annotated[str, typer.Option(envvar="MINIO_REGION", help="The bucket's region.")]
CaFile = Annotated[
    Path | None,
    typer.Option(
        envvar="MINIO_CA_FILE", exists=True, dir_okay=False, help="Authorities to trust, if not the system's."
    ),
]
RootUser = Annotated[str, typer.Option(envvar="MINIO_ROOT_USER", help="An administrator of MinIO.")]
RootPassword = Annotated[
    str, typer.Option(envvar="MINIO_ROOT_PASSWORD", help="Better given by the variable than by the option.")
]
Wait = Annotated[float, typer.Option(min=0, max=3600, help="Seconds to wait for a MinIO that is away.")]


def _user(role: str) -> Any:
    return typer.Option(envvar=f"{role.upper()}_MINIO_ACCESS_KEY", help=f"The {role}'s user.")


def _secret(role: str) -> Any:
    return typer.Option(envvar=f"{role.upper()}_MINIO_SECRET_KEY", help=f"The secret of the {role}'s user.")


@app.command()
def setup(
    context: typer.Context,
    url: Url = "http://localhost:9000",
    bucket: Bucket = "federated-combiner",
    region: Region = "us-east-1",
    ca_file: CaFile = None,
    root_user: RootUser = "",
    root_password: RootPassword = "",
    users: Annotated[bool, typer.Option(help="Also make a user for each service.")] = True,
    combiner_user: Annotated[str, _user("combiner")] = "combiner",
    combiner_secret: Annotated[str, _secret("combiner")] = "",
    modelstore_user: Annotated[str, _user("modelstore")] = "modelstore",
    modelstore_secret: Annotated[str, _secret("modelstore")] = "",
    discovery_user: Annotated[str, _user("discovery")] = "discovery",
    discovery_secret: Annotated[str, _secret("discovery")] = "",
    wait: Wait = 30.0,
) -> None:
    """Make the bucket, its lifecycle rules and a user for each service. May be run again at any time.

    Example: MINIO_ROOT_USER=… MINIO_ROOT_PASSWORD=… COMBINER_MINIO_SECRET_KEY=… MODELSTORE_MINIO_SECRET_KEY=…
    DISCOVERY_MINIO_SECRET_KEY=… combiner storage setup --url http://minio:9000
    """
    with _explained():
        from fedcombiner.storagesetup.setup import StorageSetup, User

        given = {
            RoleName.combiner: User(combiner_user, combiner_secret),
            RoleName.modelstore: User(modelstore_user, modelstore_secret),
            RoleName.discovery: User(discovery_user, discovery_secret),
        }
        root = _Server(url, bucket, region, ca_file, root_user, root_password).location()
        wanted = _checked(given) if users else {}
        for step in StorageSetup(root, patience=wait).run(wanted):
            if options(context).as_json:
                print_json({"step": step.what, "result": step.result})
            else:
                sys.stdout.write(f"{step.what}: {step.result}\n")


@app.command()
def policy(
    role: Annotated[RoleName, typer.Argument(help="The service.")],
    bucket: Bucket = "federated-combiner",
    user: Annotated[str, typer.Option(help="Its user; the service's own name if empty.")] = "",
) -> None:
    """Print what a service must be allowed, for a server whose users are made elsewhere.

    Example: combiner storage policy modelstore > modelstore.json
    """
    from fedcombiner.storagesetup.policies import policy as document

    sys.stdout.write(json.dumps(document(role.value, bucket, user or role.value), indent=2) + "\n")


@app.command()
def sweep(
    context: typer.Context,
    url: Url = "http://localhost:9000",
    bucket: Bucket = "federated-combiner",
    region: Region = "us-east-1",
    ca_file: CaFile = None,
    root_user: RootUser = "",
    root_password: RootPassword = "",
    older_than_hours: Annotated[float, typer.Option(min=1, help="Leave what is younger.")] = 24.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    wait: Wait = 30.0,
) -> None:
    """Remove data that belongs to no model: what a service left that was killed while it wrote or deleted.

    Example: combiner storage sweep --dry-run
    """
    with _explained():
        from fedcombiner.modelstorage.s3.bucket import S3Bucket
        from fedcombiner.modelstorage.s3.leftovers import orphans

        root = _Server(url, bucket, region, ca_file, root_user, root_password).location()
        store = S3Bucket(root, patience=wait)
        count = total = 0
        for orphan in orphans(store, timedelta(hours=older_than_hours)):
            if not dry_run:
                store.remove(orphan.name)
            count, total = count + 1, total + orphan.size
            if options(context).as_json:
                print_json({"name": orphan.name, "size": orphan.size, "removed": not dry_run})
            else:
                sys.stdout.write(f"{orphan.name}\n")
        if not options(context).as_json:
            sys.stdout.write(f"{count} orphans of {total} bytes{' would be' if dry_run else ''} removed\n")


@dataclass(frozen=True)
class _Server:
    url: str
    bucket: str
    region: str
    ca_file: Path | None
    root_user: str
    root_password: str

    def location(self) -> S3Location:
        from fedcombiner.modelstorage.s3.bucket import S3Location

        if not (self.root_user and self.root_password):
            raise fail("MINIO_ROOT_USER and MINIO_ROOT_PASSWORD name an administrator: set both", USAGE)
        ca_file = str(self.ca_file or "")
        return S3Location(self.url, self.bucket, self.root_user, self.root_password, self.region, ca_file)


def _checked(users: Mapping[RoleName, User]) -> Mapping[Role, User]:
    for role, user in users.items():
        for name, text, (least, most) in (
            (f"{role.upper()}_MINIO_ACCESS_KEY", user.access_key, _ACCESS_KEY_CHARS),
            (f"{role.upper()}_MINIO_SECRET_KEY", user.secret_key, _SECRET_CHARS),
        ):
            if not least <= len(text) <= most:
                state = f"has {len(text)} characters" if text else "is not set"
                raise fail(f"{name} {state}; {least} to {most} are needed (or --no-users)", USAGE)
    if len({user.access_key for user in users.values()}) < len(users):
        raise fail("two services have the same user: give each a *_MINIO_ACCESS_KEY of its own", USAGE)
    return {role.value: user for role, user in users.items()}


@contextmanager
def _explained() -> Iterator[None]:
    try:
        from fedcombiner.modelstorage.s3.errors import StoreRefused
        from fedcombiner.modelstorage.store import StoreFull, StoreUnavailable
        from fedcombiner.storagesetup.setup import SetupFailed
    except ModuleNotFoundError as error:
        raise fail(f"{error.name} is missing: {NO_MINIO}", USAGE) from None
    try:
        yield
    except SetupFailed as error:
        raise fail(str(error), JOB_FAILED) from None
    except (StoreRefused, StoreFull) as error:
        raise fail(error.message, JOB_FAILED) from None
    except StoreUnavailable as error:
        hint = "is it running? --url or MINIO_URL names another one, --wait waits longer"
        raise fail(f"{error.message}\n  {hint}", UNREACHABLE) from None
    except (ValueError, OSError) as error:
        raise fail(f"the object store cannot be as it is described: {error}", USAGE) from None
