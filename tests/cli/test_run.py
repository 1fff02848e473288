"""``edda gateway | relay | worker`` by ``edda.toml``, variables and flags; what is wrong is said before it runs."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from edda.cli.settings import read
from edda.errors import ConfigurationError
from tests.cli.conftest import Run
from tests.cli.test_commands import line, running
from tests.outbox_relays.sink import open_sink
from tests.support.databases import Database
from tests.support.eventually import eventually

SHOP = """
from edda.app import EddaApp
from edda.context import WorkflowContext
from edda.transactional import send_event_transactional
from edda.workflow import workflow
from outbox_relays.http import HttpPublisher


@workflow(on="order.created")
async def fulfil(ctx: WorkflowContext, order_id: str) -> None:
    await send_event_transactional(ctx, "order.shipped", "/shop", {"order_id": order_id}, event_id="shipped")


app = EddaApp("shop", "DATABASE", workflows=[fulfil], relays=[HttpPublisher("SINK")])
not_an_app = 7
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---------------------------------------------------------------------------------------------- settings


def test_variables_come_before_the_file(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "edda.toml").write_text('db_url = "sqlite:///a.db"\n[gateway]\nport = 1\nhost = "0.0.0.0"\n')
    monkeypatch.setenv("EDDA_GATEWAY__PORT", "2")
    settings = read(None)
    assert settings.db_url is not None
    assert settings.db_url.get_secret_value() == "sqlite:///a.db"
    assert (settings.gateway.host, settings.gateway.port) == ("0.0.0.0", 2)


def test_without_a_file_there_are_the_defaults(here: Path) -> None:
    assert read(None).db_url is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[gateway]\nprot = 1", "gateway.prot"),
        ("[gateways]", "gateways"),
        ("[gateway]\nport = 70000", "gateway.port"),
        ('[gateway]\ntokens = "s3cret"', "gateway.tokens"),
        ("[gateway\n", "not TOML"),
        ('db_url = ["postgresql://u:s3cret@h/d"]', "db_url"),
    ],
)
def test_a_wrong_setting_is_named_and_its_value_is_not(here: Path, text: str, told: str) -> None:
    file = here / "other.toml"
    file.write_text(text)
    with pytest.raises(ConfigurationError) as refused:
        read(file)
    assert told in str(refused.value)
    assert "s3cret" not in str(refused.value)


def test_a_file_that_is_named_must_be_there(here: Path) -> None:
    with pytest.raises(ConfigurationError, match="no such file"):
        read(here / "absent.toml")


# ---------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("settings", "command", "told"),
    [
        ("", ("gateway",), "--database-url"),
        ("", ("relay", "--database-url", "sqlite:///x.db"), "edda relay https://"),
        ("", ("worker",), "edda worker shop.main:app"),
        ("", ("worker", "shop"), "module:name"),
        ("", ("worker", "nowhere.main:app"), "no module 'nowhere'"),
        ("", ("worker", "the_shop:missing"), "nothing called 'missing'"),
        ("", ("worker", "the_shop:not_an_app"), "must be an EddaApp"),
        ('[[relay.http]]\nurl = "ftp://x"', ("relay", "--database-url", "sqlite:///x.db"), "https://"),
        (
            '[[relay.http]]\nurll = "https://x"',
            ("relay", "--database-url", "sqlite:///x.db"),
            "[[relay.http]]: url",
        ),
        (
            '[[relay.http]]\nurl = "https://x"\nconcurrency = "s3cret"',
            ("relay", "--database-url", "sqlite:///x.db"),
            "concurrency",
        ),
        (
            '[[gateway.kafka]]\nbootstrap_servers = "k:9092"',
            ("gateway", "--database-url", "sqlite:///x.db"),
            "topics",
        ),
        (
            '[[gateway.kafka]]\nbootstrap_servers = "k:9092"\ntopics = ["a"]\ngroup_id = "g"\nmapping = "the_shop:no"',
            ("gateway", "--database-url", "sqlite:///x.db"),
            "gateway.kafka.mapping",
        ),
        (
            '[[gateway.rabbitmq]]\nurl = "http://u:s3cret@h"\nqueues = ["q"]',
            ("gateway", "--database-url", "sqlite:///x.db"),
            "amqp://",
        ),
    ],
)
async def test_what_cannot_run_is_told_with_what_to_do(
    edda: Run, here: Path, settings: str, command: tuple[str, ...], told: str
) -> None:
    (here / "the_shop.py").write_text(SHOP.replace("DATABASE", "sqlite:///x.db").replace("SINK", "http://x/"))
    (here / "edda.toml").write_text(settings)
    ran = await edda(*command)
    assert ran.code == 1, ran.out
    assert told in ran.err
    assert "Traceback" not in ran.err
    assert "s3cret" not in ran.out + ran.err


# ---------------------------------------------------------------------------------------------- running


async def test_a_worker_runs_an_app_of_the_working_directory_and_serves_it(
    here: Path, sqlite_database: Database
) -> None:
    async with open_sink() as sink:
        text = SHOP.replace("DATABASE", sqlite_database.url).replace("SINK", sink.url)
        (here / "served_shop.py").write_text(text)
        (here / "edda.toml").write_text('[worker]\napp = "served_shop:app"\nport = 0\n')
        async with running("worker") as process:
            _, port = (await line(process)).split()
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as http:
                event = {"specversion": "1.0", "id": "1", "source": "/s", "type": "order.created"}
                answer = await http.post(
                    "/",
                    headers={"content-type": "application/cloudevents+json"},
                    content=json.dumps({**event, "data": {"order_id": "o1"}}),
                )
                assert answer.status_code == 202, answer.text
                await eventually(lambda: sink.ids == ["shipped"], 20)

                async def relays() -> object:
                    return (await http.get("/readyz")).json()["relays"]

                async def published() -> bool:
                    return await relays() == {"default": {"published": 1, "last_error": None}}

                await eventually(published, 20)
                assert (await http.get("/readyz/gateways")).status_code == 200


async def test_relays_of_the_file_publish_what_a_worker_without_relays_has_written(
    here: Path, sqlite_database: Database
) -> None:
    async with open_sink() as sink:
        text = SHOP.replace("DATABASE", sqlite_database.url).replace("SINK", "http://127.0.0.1:9/")
        (here / "shop_elsewhere.py").write_text(text)
        (here / "edda.toml").write_text(
            f'db_url = "{sqlite_database.url}"\n[relay]\nport = 0\n[[relay.http]]\nurl = "{sink.url}"\n'
        )
        arguments = ("worker", "shop_elsewhere:app", "--no-relays", "--no-gateways", "--port", "0")
        async with running(*arguments) as worker, running("relay") as relay:
            _, port = (await line(worker)).split()
            _, health = (await line(relay)).split()
            async with httpx.AsyncClient(timeout=20) as http:
                event = {"specversion": "1.0", "id": "1", "source": "/s", "type": "order.created"}
                answer = await http.post(
                    f"http://127.0.0.1:{port}/",
                    headers={"content-type": "application/cloudevents+json"},
                    content=json.dumps({**event, "data": {"order_id": "o1"}}),
                )
                assert answer.status_code == 202, answer.text
                await eventually(lambda: sink.ids == ["shipped"], 20)
                assert (await http.get(f"http://127.0.0.1:{port}/readyz")).json()["relays"] == {}
                assert (await http.get(f"http://127.0.0.1:{health}/readyz")).json()["relays"] != {}
