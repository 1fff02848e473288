"""Queries: what viewers, clients and operators see."""

import json

import pytest

from edda.errors import ConfigurationError
from edda.storage.contract import Storage
from edda.storage.rows import Release, State, WaitKind
from tests.storage import given
from tests.storage.given import APP, HOUR, WORKER


async def put(store: Storage, id: str, payload: object = None, **changes: object) -> None:
    """An instance with this input, a microsecond younger than the last at least."""
    changes.setdefault("input", json.dumps(payload or {}).encode())
    assert await store.insert_instances([given.instance(id, **changes)]) == [True]


async def found(store: Storage, **filters: object) -> list[str]:
    return [row.id for row in await store.find_instances(**filters)]  # type: ignore[arg-type]


async def test_an_unknown_instance_is_none(store: Storage) -> None:
    assert await store.get_instance("nobody") is None
    assert await store.get_history("nobody") == []


async def test_an_instance_that_has_not_ended_shows_the_kinds_of_its_waits(store: Storage) -> None:
    await given.parked(store, "parked", given.event_wait(1, "a"), given.timer(2, delay_us=HOUR))
    await given.started(store, "running")
    await given.flush(store, given.turn("running", waits=[given.event_wait(1, "a")]))
    rows = {row.id: row.wait_kinds for row in await store.find_instances()}
    assert rows == {"parked": {WaitKind.EVENT, WaitKind.TIMER}, "running": {WaitKind.EVENT}}
    assert (await given.row(store, "parked")).wait_kinds == {WaitKind.EVENT, WaitKind.TIMER}


async def test_instances_are_found_newest_first_page_by_page(store: Storage) -> None:
    # Of one transaction, and so of one time: the id decides.
    await store.insert_instances([given.instance(one) for one in ("b", "a", "c")])
    store.clock_offset_us += HOUR
    await store.insert_instances([given.instance("d")])
    assert await found(store) == ["d", "c", "b", "a"]
    seen: list[str] = []
    before = None
    while page := await store.find_instances(limit=1, before=before):
        seen += [row.id for row in page]
        before = (page[-1].created_at, page[-1].id)
    assert seen == ["d", "c", "b", "a"]
    assert await found(store, limit=3) == ["d", "c", "b"]


async def test_instances_are_found_by_app_and_state(store: Storage) -> None:
    await put(store, "runnable")
    await given.started(store, "running", "completed", "failed")
    await put(store, "elsewhere", app="Shop")
    await given.flush(store, given.end("completed"), given.end("failed", end_state=State.FAILED))
    assert await found(store, app="Shop") == ["elsewhere"]
    assert sorted(await found(store, app=APP, states=[State.RUNNABLE])) == ["runnable"]
    ended = await found(store, states=[State.COMPLETED, State.FAILED])
    assert sorted(ended) == ["completed", "failed"]
    assert await found(store, states=[State.CANCELLED]) == []


async def test_parts_of_names_are_found_whatever_their_case(store: Storage) -> None:
    for one, workflow in (("Order-17", "place_order"), ("refund-17", "Refund.Order"), ("x", "other")):
        await put(store, one, workflow=workflow)
    assert sorted(await found(store, workflow_contains="ORDER")) == ["Order-17", "refund-17"]
    assert sorted(await found(store, id_contains="-17")) == ["Order-17", "refund-17"]
    assert await found(store, id_contains="oRDER") == ["Order-17"]
    assert await found(store, id_contains="17", workflow_contains="refund") == ["refund-17"]
    assert await found(store, id_contains="") == await found(store)


@pytest.mark.parametrize("part", ["%", "_", "!", "\\", "/", "'", "%%", "a_b", "a%b", "^", "[a]", "*"])
async def test_no_character_of_a_part_is_a_wildcard(store: Storage, part: str) -> None:
    await put(store, f"x{part}y", workflow=f"x{part}y")
    await put(store, "xaby", workflow="xaby")
    await put(store, "xacby", workflow="xacby")
    assert await found(store, id_contains=part) == [f"x{part}y"]
    assert await found(store, workflow_contains=part) == [f"x{part}y"]


async def test_letters_beyond_ascii_are_found_as_they_are(store: Storage) -> None:
    await put(store, "größe-é", workflow="größe")
    assert await found(store, id_contains="größe") == ["größe-é"]
    assert await found(store, workflow_contains="RöSS") == []


async def test_instances_are_found_by_the_time_of_their_start(store: Storage) -> None:
    times = []
    for one in ("a", "b", "c"):
        await put(store, one)
        times.append((await given.row(store, one)).created_at)
        store.clock_offset_us += HOUR
    assert await found(store, started_after=times[1]) == ["c", "b"]
    assert await found(store, started_before=times[1]) == ["b", "a"]
    assert await found(store, started_after=times[1], started_before=times[1]) == ["b"]
    assert await found(store, started_after=times[2] + 1) == []


async def test_instances_are_found_by_values_in_their_input(store: Storage) -> None:
    await put(store, "a", {"order": {"id": 7, "paid": True, "tag": "x"}, "n": 1.5})
    await put(store, "b", {"order": {"id": "7", "paid": 1, "tag": "%"}, "n": None})
    await put(store, "c", {"order": [1, 2]})
    assert await found(store, input_filters={"order.id": 7}) == ["a"]
    assert await found(store, input_filters={"order.id": "7"}) == ["b"]
    assert await found(store, input_filters={"order.paid": True}) == ["a"]
    assert await found(store, input_filters={"order.paid": 1}) == ["b"]
    assert await found(store, input_filters={"n": 1.5}) == ["a"]
    assert await found(store, input_filters={"n": None}) == ["c", "b"]
    assert await found(store, input_filters={"order": [1, 2]}) == ["c"]
    assert await found(store, input_filters={"order.tag": "%"}) == ["b"]
    assert await found(store, input_filters={"order.tag": "x", "n": 1.5}) == ["a"]
    assert await found(store, input_filters={"order.tag": "x", "n": 2}) == []
    assert await found(store, input_filters={"order.id.deeper": 7}) == []
    assert await found(store, input_filters={}) == ["c", "b", "a"]


async def test_an_input_that_is_no_json_has_no_values(store: Storage) -> None:
    await put(store, "binary", input=b"\xff\0")
    await put(store, "json", {"a": 1})
    assert await found(store, input_filters={"a": 1}) == ["json"]


@pytest.mark.parametrize("path", ["", "a..b", "a b", "a;b", "a'b", ".a", "$.a", "a[0]"])
async def test_a_path_that_is_none_is_refused(store: Storage, path: str) -> None:
    with pytest.raises(ConfigurationError, match="not a path"):
        await store.find_instances(input_filters={path: 1})


async def test_pages_with_a_rare_value_in_the_input_are_full(store: Storage) -> None:
    rare = {number for number in range(1_300) if number % 100 == 0}
    await store.insert_instances(
        [given.instance(f"{number:04}", input=b'{"rare": %d}' % (number in rare)) for number in range(1_300)]
    )
    first = await found(store, input_filters={"rare": 1}, limit=10)
    assert first == [f"{number:04}" for number in sorted(rare, reverse=True)[:10]]
    last = await given.row(store, first[-1])
    rest = await found(store, input_filters={"rare": 1}, limit=10, before=(last.created_at, last.id))
    assert rest == ["0200", "0100", "0000"]


async def test_rows_are_counted_by_table_and_state(store: Storage) -> None:
    await given.started(store, "running", "yielded")
    await given.parked(store, "parked", given.event_wait(1, "a", shape_id=1), given.timer(2, delay_us=HOUR))
    await given.flush(
        store,
        given.turn("running", 1, 2, outbox=[given.message("a"), given.message("b")]),
        given.turn("yielded", release=Release.YIELD),
    )
    await given.accepted(store, given.event("e", "x", "y"))
    await store.outbox_take("default", "relay", HOUR, 1, 1)
    counts = await store.counts()
    expected = {
        "instances": 3,
        "instances.running": 1,
        "instances.runnable": 1,
        "instances.waiting": 1,
        "history": 2,
        "waits": 2,
        "events": 1,
        "identities": 1,
        "event_keys": 2,
        "unmarked": 0,
        "shapes": 0,
        "triggers": 0,
        "outbox": 2,
        "outbox.pending": 2,
        "relay_leases": 1,
        "dead_letters": 0,
        "source_positions": 0,
        "workers": 1,
    }
    assert {name: counts[name] for name in expected} == expected


async def test_a_paused_instance_is_resumed_under_a_raised_fence(store: Storage) -> None:
    await given.started(store, "order")
    await given.flush(store, given.turn("order", waits=[given.event_wait(1, "a")]))
    await given.flush(store, given.end("order", end_state=State.PAUSED, output=None, error=b"why"))
    before = await store.now()
    assert await store.resume("order") == APP
    row = await given.row(store, "order")
    assert (row.state, row.owner, row.fence, row.error) == (State.RUNNABLE, None, 2, None)
    assert row.updated_at >= before
    assert await store.resume("order") is None
    assert await given.claimed(store) == ["order"]
    assert sorted(await given.waits(store, "order")) == [1]


async def test_only_a_paused_instance_is_resumed(store: Storage) -> None:
    await given.started(store, "running", "ended")
    await given.flush(store, given.end("ended"))
    await given.parked(store, "parked", given.event_wait(1, "a"))
    for one in ("running", "ended", "parked", "nobody"):
        assert await store.resume(one) is None
    assert (await given.row(store, "running")).owner == WORKER


async def test_what_is_alive_is_counted_by_workflow_and_version(store: Storage) -> None:
    assert await store.live_versions() == []
    await store.insert_instances(
        [
            given.instance("a", version="1"),
            given.instance("b"),
            given.instance("c", workflow="bill", version="1"),
            given.instance("d", app="other", version="1"),
        ]
    )
    await given.started(store, "paused", "parked", "ended", "given-up")
    await given.flush(
        store,
        given.end("paused", end_state=State.PAUSED, output=None, error=b"why"),
        given.park("parked", given.event_wait(1, "a")),
        given.end("ended"),
        given.end("given-up", end_state=State.DEAD),
    )
    found = await store.live_versions()
    assert [(one.app, one.workflow, one.version, one.instances, one.paused) for one in found] == [
        ("other", "order", "1", 1, 0),
        (APP, "bill", "1", 1, 0),
        (APP, "order", "", 3, 1),
        (APP, "order", "1", 1, 0),
    ]
    assert found[2].oldest_at == (await given.row(store, "b")).created_at
