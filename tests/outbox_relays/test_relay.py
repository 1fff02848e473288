"""Confirms, retries, leases, stopping: a row leaves when its message is confirmed, and not before."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Sequence

import pytest
import sqlalchemy as sa
from starlette.responses import Response

from edda.cloudevent import CloudEvent
from edda.errors import ConfigurationError, StorageUnavailableError
from edda.storage.contract import Storage
from edda.storage.rows import RelayOutcome, TakenRows
from edda.storage.schema import outbox
from outbox_relays.http import HttpPublisher
from outbox_relays.publisher import Confirm, Outgoing
from outbox_relays.relay import Relay
from outbox_relays.retry import Backoff
from tests.outbox_relays.conftest import MakeRelay, OpenStore
from tests.outbox_relays.given import enqueue, is_empty, keyed, lease_holders, reasons, row, rows
from tests.outbox_relays.sink import Fails, Sink, bound_socket, open_sink
from tests.support.eventually import eventually

SLOW = Backoff(first=600, longest=600)


def sequences(sink: Sink) -> list[int]:
    return [int(str(got.event.extensions["sequence"])) for got in sink.got]


async def test_a_row_leaves_when_its_message_is_confirmed(
    store: Storage, sink: Sink, make_relay: MakeRelay
) -> None:
    await enqueue(store, row("a", subject="s", extensions={"myext": "x"}))
    relay = await make_relay(store, sink.url)
    await eventually(lambda: is_empty(store))
    [got] = sink.got
    assert (got.event.id, got.event.source, got.event.type) == ("a", "/shop", "order.paid")
    assert (got.event.json(), got.event.subject, got.event.extensions["myext"]) == ({"id": "a"}, "s", "x")
    assert relay.published == 1


async def test_a_row_is_still_there_while_its_confirm_is_outstanding(
    store: Storage, sink: Sink, make_relay: MakeRelay
) -> None:
    answer = asyncio.Event()

    async def script(_: CloudEvent) -> int:
        await answer.wait()
        return 204

    sink.script = script
    await enqueue(store, row("a"))
    await make_relay(store, sink.url)
    await eventually(lambda: sink.ids == ["a"])
    assert await rows(store) == {"a": ("pending", 0)}
    answer.set()
    await eventually(lambda: is_empty(store))


async def test_each_event_carries_its_rows_number_as_sequence_and_keeps_its_own(
    store: Storage, sink: Sink, make_relay: MakeRelay
) -> None:
    sink.script = Fails(500, "a-1", times=1)
    await enqueue(store, *keyed("a", 4), row("own", "b", extensions={"sequence": "42"}))
    await make_relay(store, sink.url)
    await eventually(lambda: is_empty(store))
    by_id = {got.event.id: got.event.extensions["sequence"] for got in sink.got}
    assert by_id["own"] == "42"
    rising = [str(got.event.extensions["sequence"]) for got in sink.got if got.event.id != "own"]
    assert rising == sorted(rising)  # as texts: that is how the extension is compared
    repeats = {str(got.event.extensions["sequence"]) for got in sink.got if got.event.id == "a-1"}
    assert len(repeats) == 1


# ---------------------------------------------------------------------------------------------- failures


async def test_a_failure_is_retried_with_the_same_identity_and_counted_in_the_database(
    store: Storage, sink: Sink, make_relay: MakeRelay
) -> None:
    sink.script = Fails(500, "a", times=3)
    await enqueue(store, row("a"))
    first = await make_relay(store, sink.url, backoff=SLOW)
    await eventually(lambda: _has_attempts(store, "a", 1))
    assert first.last_error is not None
    await first.stop()
    for attempts in (2, 3):  # a restart forgets nothing
        await _make_due(store)
        again = await make_relay(store, sink.url, backoff=SLOW)
        await eventually(lambda attempts=attempts: _has_attempts(store, "a", attempts))  # type: ignore[misc]
        await again.stop()
    await _make_due(store)
    await make_relay(store, sink.url)
    await eventually(lambda: is_empty(store))
    assert {(got.event.source, got.event.id) for got in sink.got} == {("/shop", "a")}
    assert len(set(sequences(sink))) == 1


async def _has_attempts(store: Storage, event_id: str, attempts: int) -> bool:
    return (await rows(store))[event_id] == ("retrying", attempts)


async def _make_due(store: Storage) -> None:
    async with store.engine().begin() as connection:
        await connection.execute(sa.update(outbox).values(available_at=0))


async def test_a_row_is_given_up_after_its_attempts_and_says_why(
    store: Storage, sink: Sink, make_relay: MakeRelay
) -> None:
    sink.script = Fails(500, "a", times=100)
    await enqueue(store, row("a"), row("b"))
    await make_relay(store, sink.url, backoff=Backoff(first=0.01, longest=0.02, max_attempts=3))

    async def given_up() -> bool:
        return await rows(store) == {"a": ("dead", 3)}

    await eventually(given_up)
    assert sink.ids.count("a") == 3
    assert (await reasons(store))["a"] == "HTTP 500: "


@pytest.mark.parametrize(
    "body",
    [b"\x00\x01\x02", b"\xff\xfe", "\ud83d".encode("utf-8", "surrogatepass"), b"x" * 100_000],
    ids=["control", "no text", "surrogate", "long"],
)
async def test_whatever_the_other_side_says_is_stored_as_the_reason(
    store: Storage, sink: Sink, make_relay: MakeRelay, body: bytes
) -> None:
    sink.script = Fails(Response(body, 400), "a", times=1)
    await enqueue(store, row("a"), row("b"))
    await make_relay(store, sink.url)

    async def dead() -> bool:
        return await rows(store) == {"a": ("dead", 1)}

    await eventually(dead)
    reason = (await reasons(store))["a"]
    assert reason is not None
    assert reason.startswith("HTTP 400: ")
    assert len(reason) < 600


async def test_a_row_that_holds_no_event_is_a_dead_letter_and_stops_nobody(
    store: Storage, sink: Sink, make_relay: MakeRelay
) -> None:
    await enqueue(store, row("bad", "a"), row("behind", "a"), row("other", "b"))
    async with store.engine().begin() as connection:
        broken = {"attributes": b'{"specversion":"9"}'}
        await connection.execute(sa.update(outbox).where(outbox.c.event_id == "bad").values(**broken))
    await make_relay(store, sink.url)
    await eventually(lambda: sink.ids == ["other"])

    async def stands() -> bool:
        return await rows(store) == {"bad": ("dead", 1), "behind": ("parked", 0)}

    await eventually(stands)
    assert "specversion" in str((await reasons(store))["bad"])


async def test_a_lost_confirm_is_unknown_and_the_event_goes_out_again(
    store: Storage, sink: Sink, make_relay: MakeRelay
) -> None:
    silence = asyncio.Event()

    async def script(event: CloudEvent) -> int:
        if event.id == "a" and sink.ids.count("a") == 1:
            await silence.wait()  # it has the message, and never says so
        return 204

    sink.script = script
    await enqueue(store, row("a", "k"), row("b", "k"), row("c"))
    await make_relay(store, sink.url, publish_timeout=0.3, lease_seconds=5)
    await eventually(lambda: is_empty(store))
    silence.set()
    assert [one for one in sink.ids if one != "c"] == ["a", "a", "b"]
    assert len({str(got.event.extensions["sequence"]) for got in sink.got if got.event.id == "a"}) == 1


async def test_a_connection_that_breaks_before_the_confirm_is_unknown(
    store: Storage, make_relay: MakeRelay
) -> None:
    seen: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            head = await reader.readuntil(b"\r\n\r\n")
            [length] = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")]
            await reader.readexactly(int(length.split(b":")[1]))
            seen.append(next(line for line in head.split(b"\r\n") if line.lower().startswith(b"ce-id")))
            if len(seen) > 2:
                writer.write(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n")
                await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        await enqueue(store, row("a"))
        await make_relay(store, url)
        await eventually(lambda: is_empty(store))
    assert [line.split(b": ")[1] for line in seen] == [b"a", b"a", b"a"]


async def test_while_nobody_listens_few_rows_are_tried_and_all_leave_afterwards(
    store: Storage, make_relay: MakeRelay
) -> None:
    listener, url = bound_socket()
    await enqueue(store, *(row(f"x-{number}") for number in range(40)), *keyed("ab", 5))
    relay = await make_relay(store, url, concurrency=4, backoff=Backoff(first=0.3, longest=0.3))
    await eventually(lambda: relay.last_error)
    for _ in range(20):  # kicks do not make it try faster
        relay.kick()
        await asyncio.sleep(0)
    tried = [attempts for _, attempts in (await rows(store)).values() if attempts]
    assert len(tried) <= 8
    async with open_sink(listener) as sink:
        await eventually(lambda: is_empty(store), 20)
        assert sink.of_key("a") == [f"a-{number}" for number in range(5)]
        assert sorted(set(sink.ids)) == sorted(sink.ids)
        assert len(sink.ids) == 50


async def test_retry_after_is_obeyed(store: Storage, sink: Sink, make_relay: MakeRelay) -> None:
    sink.script = Fails(Response(status_code=429, headers={"retry-after": "1"}), "a", times=1)
    await enqueue(store, row("a", "k"), *(row(f"b-{number}") for number in range(5)))
    relay = await make_relay(store, sink.url, concurrency=1)
    await eventually(lambda: sink.got)
    for number in range(5, 8):
        await enqueue(store, row(f"b-{number}"))
        relay.kick()
    await eventually(lambda: is_empty(store))
    assert sink.ids[0] == "a"
    assert all(got.at - sink.got[0].at >= 1 for got in sink.got[1:])


async def test_one_row_waits_as_long_as_it_was_asked_to_and_the_others_do_not(
    store: Storage, sink: Sink, make_relay: MakeRelay
) -> None:
    sink.script = Fails(Response(status_code=500, headers={"retry-after": "3600"}), "a", times=1)
    await enqueue(store, row("a"), row("b"))
    await make_relay(store, sink.url)

    async def only_a() -> bool:
        return await rows(store) == {"a": ("retrying", 1)}

    await eventually(only_a)
    now = await store.now()
    async with store.engine().connect() as connection:
        due = (await connection.execute(sa.select(outbox.c.available_at))).scalar_one()
    assert due > now + 3_000_000_000


# ---------------------------------------------------------------------------------------------- concurrency, rounds


async def test_as_many_are_in_flight_as_allowed_and_one_per_key(
    store: Storage, sink: Sink, make_relay: MakeRelay
) -> None:
    gate = asyncio.Event()
    keys_in_flight: list[str | None] = []

    async def script(event: CloudEvent) -> int:
        assert event.subject is None or event.subject not in keys_in_flight
        keys_in_flight.append(event.subject)
        await gate.wait()
        keys_in_flight.remove(event.subject)
        return 204

    sink.script = script
    await enqueue(store, *keyed("ab", 10), *(row(f"x-{number}") for number in range(20)))
    await make_relay(store, sink.url, concurrency=6)
    await eventually(lambda: sink.in_flight == 6)
    gate.set()
    await eventually(lambda: is_empty(store))
    assert sink.most_in_flight == 6
    assert len(sink.ids) == 40


async def test_a_round_is_bounded_in_rows_and_bytes(
    lite: Storage, sink: Sink, make_relay: MakeRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds: list[int] = []
    real = lite.outbox_settle

    async def settle(destination: str, owner: str, outcome: RelayOutcome) -> bool:
        rounds.append(len(outcome.confirmed))
        return await real(destination, owner, outcome)

    monkeypatch.setattr(lite, "outbox_settle", settle)
    await enqueue(lite, *(row(f"x-{number}", data="y" * 1_000) for number in range(12)))
    await make_relay(lite, sink.url, batch=5, max_bytes=3_100)
    await eventually(lambda: is_empty(lite))
    assert rounds == [3, 3, 3, 3]


async def test_a_long_lane_does_not_keep_the_other_keys_waiting(
    lite: Storage, sink: Sink, make_relay: MakeRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outbox_relays.relay._ROUND", 0.05)

    async def script(event: CloudEvent) -> int:
        if event.subject == "slow":
            await asyncio.sleep(0.02)
        return 204

    sink.script = script
    await enqueue(lite, *(row(f"slow-{number}", "slow") for number in range(100)))
    relay = await make_relay(lite, sink.url)
    await eventually(lambda: sink.got)
    await enqueue(lite, row("quick", "other"))
    relay.kick()
    await eventually(lambda: "quick" in sink.ids)
    assert len(sink.of_key("slow")) < 90


async def test_a_relay_goes_on_after_an_error_that_nobody_has_thought_of(
    lite: Storage, sink: Sink, make_relay: MakeRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = lite.outbox_take
    errors: list[Exception] = [RuntimeError("a bug"), StorageUnavailableError("away"), ValueError("another")]

    async def take(*arguments: object) -> TakenRows:
        if errors:
            raise errors.pop()
        return await real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(lite, "outbox_take", take)
    await enqueue(lite, row("a"))
    await make_relay(lite, sink.url)
    await eventually(lambda: is_empty(lite))
    assert sink.ids == ["a"]


async def test_a_publisher_that_raises_fails_its_row_alone(
    lite: Storage, sink: Sink, make_relay: MakeRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = HttpPublisher.publish

    async def publish(self: HttpPublisher, messages: Sequence[Outgoing]) -> Sequence[Confirm]:
        if messages[0].event.id == "bad":
            raise KeyError("a bug")
        return await real(self, messages)

    monkeypatch.setattr(HttpPublisher, "publish", publish)
    await enqueue(lite, row("bad"), row("good"))
    await make_relay(lite, sink.url, backoff=SLOW)
    await eventually(lambda: sink.ids == ["good"])

    async def retried() -> bool:
        return await rows(lite) == {"bad": ("retrying", 1)}

    await eventually(retried)


async def test_results_are_written_though_the_database_is_away_for_a_moment(
    lite: Storage, sink: Sink, make_relay: MakeRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = lite.outbox_settle
    calls: list[RelayOutcome] = []

    async def settle(destination: str, owner: str, outcome: RelayOutcome) -> bool:
        calls.append(outcome)
        if len(calls) == 1:
            raise StorageUnavailableError("before")
        held = await real(destination, owner, outcome)
        if len(calls) == 2:
            raise StorageUnavailableError("after")  # committed, and nobody hears of it
        return held

    monkeypatch.setattr(lite, "outbox_settle", settle)
    sink.script = Fails(500, "b", times=1)
    await enqueue(lite, row("a"), row("b"))
    await make_relay(lite, sink.url, backoff=SLOW)
    await eventually(lambda: len(calls) == 3)
    assert calls[0] == calls[1] == calls[2]

    async def counted_once() -> bool:
        return await rows(lite) == {"b": ("retrying", 1)}

    await eventually(counted_once)
    assert sorted(sink.ids) == ["a", "b"]


# ---------------------------------------------------------------------------------------------- idle, stopping


async def test_an_idle_relay_sends_no_statement_and_holds_no_lease(
    store: Storage, sink: Sink, make_relay: MakeRelay
) -> None:
    await enqueue(store, row("a"))
    relay = await make_relay(store, sink.url)
    await eventually(lambda: is_empty(store))

    async def released() -> bool:
        return not await lease_holders(store)

    await eventually(released)
    loop = asyncio.get_running_loop()
    sent, until = store.statements, loop.time() + 0.5
    await eventually(lambda: loop.time() > until)
    assert store.statements == sent
    await enqueue(store, row("b"))
    relay.kick()
    await eventually(lambda: sink.ids == ["a", "b"])


async def test_stop_finishes_what_is_in_flight_and_leaves_the_rest(
    store: Storage, sink: Sink, make_relay: MakeRelay
) -> None:
    gate = asyncio.Event()

    async def script(_: CloudEvent) -> int:
        await gate.wait()
        return 204

    sink.script = script
    await enqueue(store, *(row(f"x-{number}") for number in range(10)), *keyed("a", 3))
    relay = await make_relay(store, sink.url, concurrency=2)
    await eventually(lambda: sink.in_flight == 2)
    stopping = asyncio.create_task(relay.stop())
    await asyncio.sleep(0)
    gate.set()
    await stopping
    assert sink.ids == ["x-0", "x-1"]
    left = await rows(store)
    assert len(left) == 11
    assert set(left.values()) == {("pending", 0)}
    assert await lease_holders(store) == []


async def test_stop_writes_the_results_of_failures_too(
    store: Storage, sink: Sink, make_relay: MakeRelay
) -> None:
    gate = asyncio.Event()

    async def script(_: CloudEvent) -> int:
        await gate.wait()
        return 500

    sink.script = script
    await enqueue(store, *keyed("a", 3))
    relay = await make_relay(store, sink.url)
    await eventually(lambda: sink.in_flight == 1)
    stopping = asyncio.create_task(relay.stop())
    await asyncio.sleep(0)
    gate.set()
    await stopping
    assert await rows(store) == {"a-0": ("retrying", 1), "a-1": ("parked", 0), "a-2": ("parked", 0)}


async def test_a_relay_that_never_started_can_be_stopped(lite: Storage) -> None:
    await Relay(lite, HttpPublisher("http://127.0.0.1:9/")).stop()


def test_a_lease_too_short_to_publish_in_is_refused(lite: Storage) -> None:
    with pytest.raises(ConfigurationError, match="at least twice"):
        Relay(lite, HttpPublisher("http://x/", publish_timeout=10), lease_seconds=19)


# ---------------------------------------------------------------------------------------------- two relays


async def test_of_two_relays_one_leads_and_the_other_takes_over_when_it_stops(
    store: Storage, another_store: OpenStore, sink: Sink, make_relay: MakeRelay
) -> None:
    gate = asyncio.Event()

    async def script(_: CloudEvent) -> int:
        await gate.wait()
        return 204

    sink.script = script
    await enqueue(store, row("a"))
    first = await make_relay(store, sink.url, headers={"x-relay": "first"}, owner="first")
    await eventually(lambda: sink.in_flight == 1)
    second = await make_relay(await another_store(), sink.url, headers={"x-relay": "second"}, owner="second")
    await enqueue(store, row("b"))
    second.kick()
    await eventually(lambda: lease_holders(store))
    assert await lease_holders(store) == ["first"]
    assert sink.ids == ["a"]  # the second has taken nothing
    gate.set()
    await first.stop()
    await eventually(lambda: is_empty(store), 20)
    assert {got.event.id: got.headers["x-relay"] for got in sink.got}["b"] in {"first", "second"}
    await enqueue(store, row("c"))
    second.kick()
    await eventually(lambda: is_empty(store), 20)
    assert sink.got[-1].headers["x-relay"] == "second"
    assert sorted(sink.ids) == ["a", "b", "c"]


async def test_a_relay_takes_over_when_the_lease_of_one_that_died_has_expired(
    store: Storage, another_store: OpenStore, sink: Sink, make_relay: MakeRelay
) -> None:
    taken = await (await another_store()).outbox_take("default", "dead relay", 1_000_000, 10, 1_000_000)
    assert taken.held
    await enqueue(store, *keyed("a", 3))
    await make_relay(store, sink.url)
    await eventually(lambda: is_empty(store))
    assert sink.ids == ["a-0", "a-1", "a-2"]


async def test_a_relay_that_follows_does_not_ask_at_every_kick(
    lite: Storage, sink: Sink, make_relay: MakeRelay
) -> None:
    await lite.outbox_take("default", "leader", 600_000_000, 10, 1_000_000)
    relay = await make_relay(lite, sink.url)
    await eventually(lambda: relay._deaf_until)
    sent = lite.statements
    for _ in range(200):
        relay.kick()
        await asyncio.sleep(0)
    assert lite.statements <= sent + 1


async def test_relays_of_different_destinations_do_not_wait_for_each_other(
    store: Storage, another_store: OpenStore, sink: Sink, make_relay: MakeRelay
) -> None:
    async with open_sink() as other:
        other.script = lambda _: 500
        await enqueue(
            store, row("a", destination="here"), row("b", destination="there"), row("c", destination="here")
        )
        await make_relay(store, sink.url, destination="here")
        await make_relay(await another_store(), other.url, destination="there")
        await eventually(lambda: sink.ids == ["a", "c"])
        await eventually(lambda: other.ids[:1] == ["b"])
    assert list(await rows(store)) == ["b"]


async def test_a_sink_that_speaks_json_gets_what_the_row_holds(
    store: Storage, sink: Sink, make_relay: MakeRelay
) -> None:
    await enqueue(store, row("a", data={"amount": 1.1}), row("b", data=b"\x00\xff"), row("c", data=None))
    await make_relay(store, sink.url, mode="structured")
    await eventually(lambda: is_empty(store))
    by_id = {got.event.id: got.event for got in sink.got}
    assert json.loads(by_id["a"].data or b"") == {"amount": 1.1}
    assert (by_id["b"].data, by_id["b"].datacontenttype) == (b"\x00\xff", "application/octet-stream")
    assert by_id["c"].data is None
