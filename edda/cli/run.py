"""The commands that run a part until SIGTERM: gateway, relay, worker."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edda.cli.settings import ConfigFile, Settings, read
from edda.errors import ConfigurationError, MissingExtraError

if TYPE_CHECKING:
    from edda.app import EddaApp
    from outbox_relays.publisher import Publisher

app = typer.Typer()

DatabaseUrl = Annotated[
    str | None,
    typer.Option("--database-url", envvar="EDDA_DB_URL", help="Default: db_url in edda.toml."),
]
Host = Annotated[
    str | None, typer.Option(help="Where to listen; default: the settings' host, else 127.0.0.1.")
]
Port = Annotated[int | None, typer.Option(help="0: any free port.", min=0, max=65535)]


@app.command()
def gateway(
    database_url: DatabaseUrl = None,
    config: ConfigFile = None,
    host: Host = None,
    port: Port = None,
    token: Annotated[
        list[str] | None,
        typer.Option(envvar="EDDA_GATEWAY_TOKENS", help="Let in; give two while one replaces the other."),
    ] = None,
) -> None:
    """Take events over HTTP, and from the Kafka topics and RabbitMQ queues that edda.toml names.

    Needs no code of yours: what events start is in the database.
    """
    from edda.app import EddaApp
    from edda.cli.parts import gateways_of

    settings = read(config)
    section = settings.gateway
    served = EddaApp(
        "edda-gateway",
        _database(settings, database_url),
        workflows=[],
        work=False,
        gateways=gateways_of(section),
        gateway_tokens=token or [each.get_secret_value() for each in section.tokens],
    )
    port = section.port if port is None else port
    _run(served, host or section.host, 8000 if port is None else port, "edda gateway")


@app.command()
def relay(
    database_url: DatabaseUrl = None,
    url: Annotated[
        str | None, typer.Argument(help="Where to POST the events; default: every relay of edda.toml.")
    ] = None,
    config: ConfigFile = None,
    destination: Annotated[str, typer.Option(help="Its name in the outbox.")] = "default",
    mode: Annotated[str, typer.Option(help="binary, structured or batch.")] = "binary",
    token: Annotated[
        str | None, typer.Option(envvar="EDDA_RELAY_TOKEN", help="Sent as a bearer token.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests in flight at once.")] = 64,
    host: Host = None,
    port: Port = None,
) -> None:
    """Publish the outbox's events to an HTTP endpoint, or to every relay of edda.toml.

    With a port it answers /healthz and /readyz there.
    """
    from edda.app import EddaApp
    from edda.cli.parts import publishers_of
    from outbox_relays.http import HttpPublisher

    settings = read(config)
    publishers: list[Publisher]
    if url is not None:
        if mode not in {"binary", "structured", "batch"}:
            raise ConfigurationError(f"--mode {mode}: use binary, structured or batch")
        publishers = [
            HttpPublisher(
                url,
                destination=destination,
                mode=mode,  # type: ignore[arg-type]  # one of the three
                token=token,
                concurrency=concurrency,
            )
        ]
    else:
        publishers = publishers_of(settings.relay)
    if not publishers:
        raise ConfigurationError(
            "there is nothing to relay to. Give a URL, as in 'edda relay https://example.com/events', or a "
            "[[relay.http]], [[relay.kafka]] or [[relay.rabbitmq]] in edda.toml."
        )
    served = EddaApp(
        "edda-relay", _database(settings, database_url), workflows=[], work=False, relays=publishers
    )
    port = settings.relay.port if port is None else port
    _run(served, host or settings.relay.host, port, "edda relay --port", "relaying")


@app.command()
def worker(
    path: Annotated[
        str | None,
        typer.Argument(metavar="MODULE:APP", help="Your EddaApp; default: [worker] app in edda.toml."),
    ] = None,
    config: ConfigFile = None,
    host: Host = None,
    port: Port = None,
    gateways: Annotated[bool, typer.Option(help="Run the app's gateways here, too.")] = True,
    relays: Annotated[bool, typer.Option(help="Run the app's relays here, too.")] = True,
) -> None:
    """Run your app's workflows, gateways and relays. With a port it also serves HTTP there."""
    from edda.app import EddaApp
    from edda.cli.parts import found

    section = read(config).worker
    where = "MODULE:APP" if path else "[worker] app"
    path = path or section.app
    if path is None:
        raise ConfigurationError(
            "which app? Say 'edda worker shop.main:app', or app in [worker] of edda.toml."
        )
    served = found(path, where)
    if not isinstance(served, EddaApp):
        raise ConfigurationError(f"{where}={path!r} is a {type(served).__name__}, and must be an EddaApp")
    served.run_gateways, served.run_relays = gateways, relays
    port = section.port if port is None else port
    _run(served, host or section.host, port, "edda worker --port", "working")


def _database(settings: Settings, flag: str | None) -> str:
    if flag is not None:
        return flag
    if settings.db_url is None:
        raise ConfigurationError(
            "which database? Say --database-url sqlite:///orders.db, set EDDA_DB_URL, or db_url in edda.toml "
            f"(looked for in {Path.cwd()})."
        )
    return settings.db_url.get_secret_value()


def _run(served: EddaApp, host: str, port: int | None, what: str, said: str = "") -> None:
    from edda.cli.until import until_terminated

    if port is None:
        asyncio.run(until_terminated(served, said))
        return
    try:
        from edda.cli.serve import serve
    except ModuleNotFoundError as error:
        raise MissingExtraError(what, "http") from error
    asyncio.run(serve(served, host, port))
