"""Claim: who gets which runnable instances, and in which order."""

from edda.storage.contract import Storage
from edda.storage.rows import Applied, ClaimedInstance, Release, State
from tests.storage import given
from tests.storage.conftest import OpenStore
from tests.storage.given import APP, OTHER, WORKER


async def test_a_claimed_instance_is_running_owned_and_under_a_raised_fence(store: Storage) -> None:
    await store.insert_instances([given.instance("order")])
    before = await store.now()
    (claimed,) = await store.claim(APP, ["order"], WORKER, 10)
    row = await given.row(store, "order")
    assert (row.state, row.owner, row.fence, row.signals) == (State.RUNNING, WORKER, 1, 0)
    assert row.updated_at >= before
    assert claimed.fence == 1
    assert await given.applied(store, given.turn("order", 1)) == [Applied.APPLIED]


async def test_a_claim_says_all_that_the_instance_was_inserted_with(store: Storage) -> None:
    await store.insert_instances(
        [
            given.instance(
                "order",
                version="2",
                input=b"\0\xff",
                chain="root",
                chain_started_at=17,
                carried=b"c",
                live_key=given.digest("key"),
                start_event=9,
            )
        ]
    )
    created_at = (await given.row(store, "order")).created_at
    expected = ClaimedInstance(
        id="order",
        app=APP,
        workflow="order",
        version="2",
        fence=1,
        signals=0,
        chain="root",
        chain_started_at=17,
        created_at=created_at,
        start_event=9,
        recoveries=0,
        input=b"\0\xff",
        carried=b"c",
        live_key=given.digest("key"),
    )
    assert await store.claim(APP, ["order"], WORKER, 10, [("order", "2")]) == [expected]
    assert await store.owned(WORKER) == [expected]


async def test_nothing_is_claimed_twice(store: Storage) -> None:
    await store.insert_instances([given.instance(f"order-{number}") for number in range(10)])
    await store.register_worker(OTHER, APP, given.HOUR)
    claimed = [
        await given.claimed(store, worker, limit=3) for worker in (WORKER, OTHER, WORKER, OTHER, WORKER)
    ]
    assert [len(some) for some in claimed] == [3, 3, 3, 1, 0]
    assert len({one for some in claimed for one in some}) == 10


async def test_high_priority_goes_first_then_who_has_waited_longest(store: Storage) -> None:
    for one, priority, delay in (("late", 0, -5), ("early", 0, -9), ("urgent", 7, -1), ("last", -3, -99)):
        await store.insert_instances([given.instance(one, priority=priority, delay_us=delay * given.SECOND)])
    assert await given.claimed(store, limit=1) == ["urgent"]
    assert await given.claimed(store, limit=2) == ["early", "late"]
    assert await given.claimed(store) == ["last"]


async def test_an_instance_is_not_claimed_before_its_time(store: Storage) -> None:
    await store.insert_instances([given.instance("order", delay_us=given.HOUR)])
    assert await given.claimed(store) == []
    store.clock_offset_us += given.HOUR
    assert await given.claimed(store) == ["order"]


async def test_an_instance_of_another_app_or_workflow_is_left_alone(store: Storage) -> None:
    await store.insert_instances(
        [given.instance("a", app="other"), given.instance("b", workflow="other"), given.instance("c")]
    )
    assert await given.claimed(store) == ["c"]
    assert await given.claimed(store, workflows=[]) == []
    assert await given.claimed(store, workflows=["x", "other"]) == ["b"]
    assert await given.claimed(store, app="other", workflows=["order", "other"]) == ["a"]


async def test_an_instance_of_a_version_is_claimed_by_that_version_only_and_others_by_anyone(
    store: Storage,
) -> None:
    await store.insert_instances(
        [
            given.instance("none"),
            given.instance("one", version="1"),
            given.instance("two", version="2"),
            given.instance("ones-of-another", workflow="other", version="1"),
        ]
    )

    async def claimed(workflows: list[str], versions: list[tuple[str, str]]) -> list[str]:
        return sorted(one.id for one in await store.claim(APP, workflows, WORKER, 10, versions))

    assert await claimed(["other"], [("order", "1")]) == []
    assert await claimed(["order"], []) == ["none"]
    assert await claimed(["order", "other"], [("order", "3"), ("other", "2")]) == []
    assert await claimed(["order", "other"], [("order", "2")]) == ["two"]
    assert await claimed(["order", "other"], [("order", "1"), ("other", "1")]) == ["one", "ones-of-another"]


async def test_instances_of_versions_that_nobody_here_has_do_not_stand_in_the_way(store: Storage) -> None:
    await store.insert_instances([given.instance(f"old-{number}", version="1") for number in range(20)])
    await store.insert_instances([given.instance("new", version="2")])
    assert [one.id for one in await store.claim(APP, ["order"], WORKER, 1, [("order", "2")])] == ["new"]


async def test_a_limit_of_nothing_claims_nothing(store: Storage) -> None:
    await store.insert_instances([given.instance("order")])
    assert await given.claimed(store, limit=0) == []


async def test_only_runnable_instances_are_claimed(store: Storage) -> None:
    await given.started(store, "running", "waiting", "paused", "ended", "yielded")
    await given.flush(
        store,
        given.park("waiting", given.event_wait(1, "a")),
        given.end("paused", end_state=State.PAUSED),
        given.end("ended"),
        given.turn("yielded", release=Release.YIELD),
    )
    assert await given.claimed(store) == ["yielded"]


async def test_a_worker_that_is_dead_or_unknown_claims_nothing(store: Storage) -> None:
    await store.insert_instances([given.instance("order")])
    assert await given.claimed(store, "nobody") == []
    await store.register_worker(OTHER, APP, -1)
    await store.requeue_expired()
    assert await given.claimed(store, OTHER) == []
    await store.retire_worker(WORKER)
    assert await given.claimed(store, WORKER) == []
    row = await given.row(store, "order")
    assert (row.state, row.fence) == (State.RUNNABLE, 0)


async def test_a_worker_whose_lease_has_ended_but_whom_nobody_declared_dead_still_claims(
    store: Storage,
) -> None:
    await store.register_worker(OTHER, APP, -1)
    await store.insert_instances([given.instance("order")])
    assert await given.claimed(store, OTHER) == ["order"]


async def test_a_worker_owns_what_it_has_started_and_claimed_and_nothing_else(store: Storage) -> None:
    await store.register_worker(OTHER, APP, given.HOUR)
    await given.started(store, "started", "ended")
    await given.started(store, "others", owner=OTHER)
    await store.insert_instances([given.instance("claimed")])
    await given.claimed(store)
    await given.flush(store, given.end("ended"))
    assert sorted(one.id for one in await store.owned(WORKER)) == ["claimed", "started"]
    assert {one.id: one.fence for one in await store.owned(OTHER)} == {"others": 1}
    assert await store.owned("nobody") == []


async def test_a_woken_instance_is_claimed_by_any_process_and_knows_its_signals(
    store: Storage, another_store: OpenStore
) -> None:
    other = await another_store()
    await other.register_worker(OTHER, APP, given.HOUR)
    await given.parked(store, "order", given.event_wait(1, "a"))
    await given.accepted(store, given.event("e", "a"))
    (claimed,) = await other.claim(APP, ["order"], OTHER, 10)
    assert (claimed.fence, claimed.signals) == (2, 1)
    assert (await given.loaded(other, "order")).signals == 1


async def test_a_claim_takes_many_at_once(store: Storage) -> None:
    await store.insert_instances([given.instance(f"order-{number:04}") for number in range(1_200)])
    assert len(await given.claimed(store, limit=1_100)) == 1_100
    assert len(await given.claimed(store, limit=1_100)) == 100
