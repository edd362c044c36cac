"""The `combiner` command."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fedcombiner.cli import (
    backup,
    certs,
    events,
    export,
    packages,
    resources,
    status,
    storage,
    tokens,
    upkeep,
)
from fedcombiner.cli import demo as training
from fedcombiner.cli.output import (
    INTERRUPTED,
    JOB_FAILED,
    USAGE,
    Options,
    fail,
    options,
    unreachable,
)
from fedcombiner.cli.remote import CA_HELP, TLS_HELP, Ca, Tls
from fedcombiner.client.errors import ServerUnreachable, TlsFailed
from fedcombiner.servicekit.errors import ServiceError, StartupError
from fedcombiner.version import __version__

NO_STANDALONE = "this needs the whole stack: pip install 'federated-combiner[standalone]'"

app = typer.Typer(
    help="Run a federated-learning server, and train on it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(resources.models, name="model")
app.add_typer(resources.sessions, name="session")
app.add_typer(resources.jobs, name="job")
app.add_typer(storage.app, name="storage")
app.add_typer(certs.app, name="certs")
app.add_typer(packages.app, name="package")
app.add_typer(tokens.app, name="token")
app.command()(status.status)
app.command()(resources.clients)
app.command()(events.events)
app.command()(upkeep.gc)
app.command()(backup.backup)
app.command()(backup.restore)
resources.models.command("prune")(upkeep.prune)
resources.sessions.command("export")(export.export)


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"combiner {__version__}\n")
        raise typer.Exit


@app.callback()
def _main(
    context: typer.Context,
    server: Annotated[
        str, typer.Option(envvar="COMBINER_SERVER", metavar="HOST:PORT", help="The combiner to talk to.")
    ] = "localhost:12080",
    json: Annotated[bool, typer.Option("--json", help="JSON, one object a line.")] = False,
    ca: Annotated[Path | None, typer.Option(envvar="COMBINER_CA", metavar="FILE", help=CA_HELP)] = None,
    tls: Annotated[bool, typer.Option("--tls", envvar="COMBINER_TLS", help=TLS_HELP)] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version.")
    ] = False,
) -> None:
    # Never an option: command lines are for everybody on the machine to read.
    token = os.environ.get("COMBINER_TOKEN", "")
    context.obj = Options(server=server, as_json=json, ca=ca, tls=tls, token=token)


@app.command()
def serve(
    host: Annotated[str, typer.Option(envvar="HOST", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="gRPC.")] = 12080,
    discovery_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Where clients ask for a combiner.")
    ] = 8092,
    metrics_port: Annotated[int, typer.Option(min=0, max=65535, help="Metrics and health.")] = 9464,
    data: Annotated[
        Path, typer.Option(envvar="DATA", file_okay=False, help="Directory that keeps everything.")
    ] = Path("data"),
    redis: Annotated[
        str, typer.Option(metavar="URL", help="A Redis of your own; an embedded one if empty.")
    ] = "",
    redis_memory: Annotated[
        int | None,
        typer.Option(
            envvar="REDIS_MEMORY_MIB",
            metavar="MIB",
            min=64,
            help="Memory for the data of the embedded Redis; a quarter of what there is if not given.",
        ),
    ] = None,
    advertise: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where clients reach this server.")
    ] = "",
    tls_cert: Annotated[
        Path | None,
        typer.Option(envvar="TLS_CERT_FILE", metavar="FILE", help="Serve TLS: certificate, PEM."),
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(envvar="TLS_KEY_FILE", metavar="FILE", help="Its private key, PEM.")
    ] = None,
    operator_token_file: Annotated[
        Path | None,
        typer.Option(
            envvar="OPERATOR_TOKEN_FILE",
            metavar="FILE",
            help="The operator's token; then tokens are asked for.",
        ),
    ] = None,
    require_client_tokens: Annotated[
        bool | None,
        typer.Option(
            "--require-client-tokens/--no-client-tokens",
            envvar="REQUIRE_CLIENT_TOKENS",
            help="Whether clients need a token, too; by default with TLS only.",
        ),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", envvar="INSECURE", help="Let everybody in, whatever the address.")
    ] = False,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """The whole stack in this process, in the foreground, for real clients.

    Models are kept in the data directory, or where STORE and MINIO_... say (docs/storage.md). On any address
    but 127.0.0.1 an operator's token is needed: OPERATOR_TOKEN, or a file that has it (docs/access.md). What
    the discovery tells clients follows HELPER_..., PACKAGE and COMBINER_TTL (docs/discovery.md).

    Examples:
      combiner serve
      combiner serve --host 0.0.0.0 --data /srv/combiner --advertise combiner.example.org:12080
    """
    try:
        from discovery_mock.settings import DiscoverySettings
        from modelstore.settings import ModelstoreSettings

        from fedcombiner.modelstorage.memory import keep_freed_chunks
        from fedcombiner.servicekit import logs
        from fedcombiner.servicekit.lifecycle import Stop, run
        from fedcombiner.servicekit.settings import InvalidSettings
        from fedcombiner.standalone.app import Standalone, StandaloneSettings
    except ModuleNotFoundError as error:
        raise fail(f"{error.name} is missing; {NO_STANDALONE}", USAGE) from None
    if log_level not in ("debug", "info", "warning", "error"):
        raise fail(f"--log-level {log_level}: must be debug, info, warning or error", USAGE)
    try:
        models = ModelstoreSettings.load(
            data=data / "models",
            scratch=data / "scratch",
            tls_cert_file=tls_cert,
            tls_key_file=tls_key,
            operator_token_file=operator_token_file,
            require_client_tokens=require_client_tokens,
            insecure=insecure,
        )
        discovery = DiscoverySettings.load(scratch=data / "scratch")
    except InvalidSettings as error:
        raise fail(str(error), USAGE) from None
    settings = StandaloneSettings(
        data_dir=data,
        host=host,
        port=port,
        discovery_port=discovery_port,
        metrics_port=metrics_port,
        redis_url=redis or None,
        redis_memory_mib=redis_memory,
        advertise=advertise,
        modelstore=models,
        discovery=discovery,
    )

    async def main(stop: Stop) -> None:
        async with Standalone(settings, stop) as stack:
            Console(stderr=True).print(
                f"combiner {__version__}: gRPC {stack.address} · discovery {stack.discovery_url} · metrics"
                f" {stack.metrics_url}/metrics · data {data}\n"
                "put a model: combiner model put FILE.npz   stop: Ctrl-C",
                highlight=False,
            )
            await stack.wait_stopped()

    logs.configure("console" if sys.stderr.isatty() else "json", log_level, "standalone")  # type: ignore[arg-type]
    keep_freed_chunks()
    raise typer.Exit(run(main))


@app.command()
def demo(
    context: typer.Context,
    server: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="A running stack; one is made for now if none is named."),
    ] = None,
    ca: Ca = None,  # these two are put into the options by their callbacks
    tls: Tls = False,
    rounds: Annotated[int, typer.Option(min=1)] = 10,
    clients: Annotated[int, typer.Option(min=1, max=100)] = 10,
    seed: Annotated[int, typer.Option(min=0)] = 1,
    out: Annotated[Path, typer.Option(dir_okay=False, help="Where the final model goes.")] = Path(
        "out/model.npz"
    ),
    own_clients: Annotated[
        bool, typer.Option(help="Start the clients too; if not, they run elsewhere and are waited for.")
    ] = True,
    at_least: Annotated[float, typer.Option(min=0, max=1, help="Fail if the final accuracy is lower.")] = 0.0,
) -> None:
    """Train a small network on handwritten digits, with clients whose data never leaves them.

    Examples:
      combiner demo
      combiner demo --rounds 20 --clients 5 --out digits.npz
      combiner demo --server localhost:12080
    """
    console = Console(soft_wrap=True)
    server = server or _named_server(context)
    # What is made for now is here, in plaintext and open.
    given = options(context) if server else Options()
    try:
        work = training.run(
            server,
            given.trust,
            token=given.token,
            rounds=rounds,
            count=clients,
            seed=seed,
            out=out,
            console=console,
            own_clients=own_clients,
        )
        accuracy = asyncio.run(work)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except ModuleNotFoundError as error:
        raise fail(f"{error.name} is missing; {NO_STANDALONE}", USAGE) from None
    except (ServerUnreachable, TlsFailed) as error:
        raise unreachable(error) from None
    except (training.DemoFailed, ServiceError, StartupError, TimeoutError) as error:
        raise fail(str(error), JOB_FAILED) from None
    console.print(f"model: {out}", highlight=False)
    sys.stdout.write(f"final accuracy {accuracy:.3f}\n")
    if accuracy < at_least:
        raise fail(f"the accuracy is below {at_least:g}", JOB_FAILED)


def _named_server(context: typer.Context) -> str | None:
    """The server of `combiner --server HOST:PORT demo`. One in the environment is not meant for the demo."""
    parent = context.parent
    given = parent.get_parameter_source("server") if parent else None
    return options(context).server if given is not None and given.name == "COMMANDLINE" else None


def main() -> None:
    app()
