"""Minutes of kill -9, SIGSTOP and lost connections at random, under load; at the end the ledger must add up.

A run prints its seed. ``EDDA_CHAOS_SEED`` repeats its choices, ``EDDA_CHAOS_SECONDS`` makes it longer.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter

import pytest

from tests.crash.cast import Role, between
from tests.crash.customers import Customers
from tests.crash.proxies import Proxy
from tests.crash.shop import Shop

SECONDS = float(os.environ.get("EDDA_CHAOS_SECONDS", "45"))
ORDERS_A_SECOND = 6

#: What a throw of the dice does: below the first the connections are cut, below the last a process is killed.
_CUT, _KILL, _STOP = 0.08, 0.3, 0.55


@pytest.mark.long
@pytest.mark.endurance
@pytest.mark.timeout(SECONDS + 400)
async def test_orders_survive_chaos(shop: Shop) -> None:
    seed = int(os.environ.get("EDDA_CHAOS_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"EDDA_CHAOS_SEED={seed}")
    dice = random.Random(seed)
    shop.start_sink()
    async with between(shop) as proxy:
        cast = [
            *(Role("gateway", lambda: shop.start("gateway")) for _ in range(2)),
            *(Role("worker", lambda: shop.start("worker")) for _ in range(3)),
            *(Role("relay", shop.start_relay) for _ in range(2)),
        ]
        for role in cast:
            await role.start()
        gateways = [role for role in cast if role.name == "gateway"]
        customers = Customers(lambda: dice.choice(gateways).port, dice)
        orders = int(SECONDS * ORDERS_A_SECOND)
        buying = asyncio.create_task(customers.buy(0, orders, over=SECONDS))
        faults = await _do_harm(cast, proxy, dice, buying)
        await buying
        for role in cast:
            await role.heal()
        await shop.all_done(orders, timeout=200)

    print(f"faults {dict(faults)}, verdicts {dict(customers.verdicts)}, in vain {dict(customers.in_vain)}")
    assert await shop.faults(customers.orders) == [], f"EDDA_CHAOS_SEED={seed}"
    # It was chaos: every role was hit both ways, and takeovers happened.
    for name in ("gateway", "worker", "relay"):
        assert min(faults[f"{name} killed"], faults[f"{name} stopped"]) > 0, faults
    said = "\n".join(process.output for process in shop.processes)
    assert "instances_requeued" in said
    assert customers.verdicts["duplicate"] > 0
    assert sum(customers.in_vain.values()) > 0


async def _do_harm(
    cast: list[Role], proxy: Proxy | None, dice: random.Random, until: asyncio.Task[None]
) -> Counter[str]:
    done: Counter[str] = Counter()
    # Every role is hit both ways, whatever the dice say; the rest is left to them.
    certain = [(role, what) for role in cast for what in (_KILL, _STOP)]
    dice.shuffle(certain)
    loop = asyncio.get_running_loop()
    end = loop.time() + SECONDS
    async with asyncio.TaskGroup() as sleeping:
        while loop.time() < end:
            await asyncio.sleep(dice.uniform(0.2, 2.0))
            if until.done():
                until.result()
            role, what = certain.pop() if certain else (dice.choice(cast), dice.random())
            if what < _CUT and proxy is not None:
                await proxy.down()
                await asyncio.sleep(dice.uniform(0, 2))
                await proxy.up()
                done["connections cut"] += 1
            elif what < _STOP:
                await role.kill()
                done[f"{role.name} killed"] += 1
            else:
                # Shorter and longer than the lease.
                sleeping.create_task(role.stop_for(dice.uniform(0.2, 5)))
                done[f"{role.name} stopped"] += 1
    return done
