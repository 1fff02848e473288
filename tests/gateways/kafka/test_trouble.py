"""What goes wrong is told in health, tried again, and loses nothing."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from typing import Any

import pytest

from edda.errors import StorageUnavailableError
from edda.inbox.accept import Accepted, Inbox, Positioned
from edda.storage.contract import Storage
from edda.storage.rows import NewDeadLetter, PositionAdvance
from tests.gateways.kafka.conftest import MakeGateway
from tests.gateways.kafka.given import accepted, binary, ids, many, membership, reads
from tests.support import containers
from tests.support.eventually import eventually
from tests.support.kafka import SASL_PASSWORD, SASL_USER, Kafka, mock_cluster, new_name, until_it_serves

pytestmark = pytest.mark.real


async def test_topic_that_is_missing_is_told_and_read_when_it_is_there(
    lite: Storage, kafka: Kafka, make_gateway: MakeGateway
) -> None:
    topic, missing = await kafka.topic(), new_name("missing")
    gateway = await make_gateway(lite, topic, missing, stall_after=2.0)
    await kafka.send(topic, binary("a"))
    await accepted(lite, 1)  # the other one goes on
    assert not gateway.health().healthy
    assert f"no topic '{missing}': create it" in gateway.health().detail
    await kafka.topic(name=missing)
    await kafka.send(missing, binary("b"))
    await accepted(lite, 2)
    await eventually(lambda: gateway.health().healthy)


async def test_gateway_of_a_single_missing_topic_waits_for_it(
    lite: Storage, kafka: Kafka, make_gateway: MakeGateway
) -> None:
    missing = new_name("missing")
    gateway = await make_gateway(lite, missing)
    await eventually(lambda: f"no topic '{missing}'" in gateway.health().detail)
    await kafka.topic(name=missing)
    await kafka.send(missing, binary("a"))
    assert await accepted(lite, 1) == ["a"]
    assert gateway.health().healthy


async def test_wrong_address_is_told(lite: Storage, make_gateway: MakeGateway) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        gateway = await make_gateway(lite, "orders", bootstrap_servers=address)
        await eventually(lambda: "no connection to Kafka" in gateway.health().detail)
        assert f"{address}: " in gateway.health().detail
        assert not gateway.health().healthy
        await gateway.stop()


async def test_refused_password_is_told_and_not_shown(
    lite: Storage, kafka: Kafka, make_gateway: MakeGateway, caplog: pytest.LogCaptureFixture
) -> None:
    if kafka.sasl is None:
        pytest.skip("the broker in EDDA_TEST_KAFKA_URL has no port that asks for a password; leave it unset")
    topic = await kafka.topic()
    await kafka.send(topic, binary("a"))
    login: dict[str, Any] = {"bootstrap_servers": kafka.sasl, "security_protocol": "SASL_PLAINTEXT"}
    login["sasl_plain_username"] = SASL_USER
    refused = await make_gateway(lite, topic, **login, sasl_plain_password="wr0ng-s3cret")
    await eventually(lambda: "Authentication failed" in refused.health().detail)
    await refused.stop()
    assert await ids(lite) == []
    let_in = await make_gateway(lite, topic, **login, sasl_plain_password=SASL_PASSWORD)
    assert await accepted(lite, 1) == ["a"]
    shown = "".join(str(vars(record)) for record in caplog.records) + repr(let_in) + str(refused.health())
    assert "wr0ng" not in shown
    assert SASL_PASSWORD not in shown


class _Away(Inbox):
    """An inbox whose database may be away."""

    is_away = False
    asked = 0

    async def accept_batch(
        self,
        items: Sequence[Positioned],
        positions: Sequence[PositionAdvance] = (),
        poison: Sequence[NewDeadLetter] = (),
    ) -> Accepted:
        self.asked += 1
        if self.is_away:
            raise StorageUnavailableError("away")
        return await super().accept_batch(items, positions, poison)


async def test_while_the_database_is_away_the_gateway_stays_in_its_group_and_skips_nothing(
    lite: Storage, kafka: Kafka, make_gateway: MakeGateway, group: str
) -> None:
    topic = await kafka.topic(4)
    inbox = _Away(lite)
    gateway = await make_gateway(inbox, topic, stall_after=1.0)
    # Kafka's client leaves the group when nobody asks it for records for so long.
    gateway._consumer["max_poll_interval_ms"] = 2_500
    await gateway.stop()
    await gateway.start(inbox)
    await reads(gateway, 4)
    inbox.is_away = True
    await kafka.send(topic, *many(100))
    member = gateway._member
    assert member is not None
    await eventually(lambda: member.waits_since is not None)
    polled = member.polled_at
    await eventually(lambda: member.polled_at > polled + 4)
    assert await kafka.members(group) == 1
    # One more member: everything changes hands, and stays paused.
    second = await make_gateway(inbox, topic)
    await membership(kafka, group, 2)
    await kafka.send(topic, *many(100, "more"))
    await eventually(lambda: second._member is not None and second._member.waits_since is not None)
    assert await ids(lite) == []
    inbox.is_away = False
    assert len(set(await accepted(lite, 200))) == 200
    assert gateway.accepted + second.accepted == 200
    assert gateway.rebuilt == second.rebuilt == 0


async def test_consumer_that_is_connected_and_hands_out_nothing_is_made_anew(
    lite: Storage, kafka: Kafka, make_gateway: MakeGateway
) -> None:
    topic = await kafka.topic()
    gateway = await make_gateway(lite, topic, stall_after=1.0)
    await kafka.send(topic, binary("a"))
    await accepted(lite, 1)
    member = gateway._member
    assert member is not None
    member._consumer._fetcher._fetch_task.cancel()  # what its faults come down to; heartbeats go on
    await kafka.send(topic, binary("b"))  # it may have asked for this one already
    await accepted(lite, 2)
    await kafka.send(topic, binary("c"))
    assert await accepted(lite, 3) == ["a", "b", "c"]
    assert gateway.rebuilt == 1


async def test_group_that_never_answers_is_joined_anew(
    lite: Storage, kafka: Kafka, make_gateway: MakeGateway
) -> None:
    topic = await kafka.topic()
    gateway = await make_gateway(lite, topic, stall_after=1.0, session_timeout=1.0)
    await reads(gateway, 1)
    member = gateway._member
    assert member is not None
    # A rebalance that does not end: polling waits for it, without regard to its own timeout.
    member._consumer._coordinator._coordination_task.cancel()
    await asyncio.gather(member._consumer._coordinator._coordination_task, return_exceptions=True)
    member._consumer._subscription.begin_reassignment()
    await kafka.send(topic, binary("a"))
    assert await accepted(lite, 1) == ["a"]
    assert gateway.rebuilt == 1


@pytest.mark.long
async def test_broker_that_is_frozen_turns_health_red_and_nothing_is_lost(
    lite: Storage, make_gateway: MakeGateway
) -> None:
    with mock_cluster() as (mock, process):
        topic = new_name("t")
        await mock.send(topic, *many(10))
        gateway = await make_gateway(lite, topic, bootstrap_servers=mock.bootstrap, session_timeout=10.0)
        await accepted(lite, 10)
        process.pause()
        await eventually(lambda: "Kafka does not answer" in gateway.health().detail, 20)
        assert not gateway.health().healthy
        process.resume()
        await eventually(lambda: gateway.health().healthy, 30)
        await mock.send(topic, *many(10, "more"))
        assert len(set(await accepted(lite, 20))) == 20
        await gateway.stop()


async def test_restarted_broker_is_found_again_and_nothing_is_lost(
    lite: Storage, own_kafka: Kafka, make_gateway: MakeGateway
) -> None:
    topic = await own_kafka.topic(2)
    gateway = await make_gateway(lite, topic, bootstrap_servers=own_kafka.bootstrap)
    await own_kafka.send(topic, *many(50))
    await accepted(lite, 50)
    assert own_kafka.container is not None
    await asyncio.to_thread(containers.restart, own_kafka.container)
    await until_it_serves(own_kafka.bootstrap, own_kafka.container)
    await own_kafka.send(topic, *many(50, "after"))
    assert len(set(await accepted(lite, 100, 40))) == 100
    await eventually(lambda: gateway.health().healthy, 30)
    await gateway.stop()
