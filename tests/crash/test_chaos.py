"""Minutes of kill -9, SIGSTOP and lost connections at random, under load; at the end the ledger must add up.

A run prints its seed. ``EDDA_CHAOS_SEED`` repeats its choices, ``EDDA_CHAOS_SECONDS`` makes it longer.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from tests.crash.customers import Customers
from tests.crash.programs import port_of
from tests.crash.proxies import Proxy, proxied
from tests.crash.shop import Shop
from tests.support.eventually import eventually
from tests.support.processes import Process

SECONDS = float(os.environ.get("EDDA_CHAOS_SECONDS", "45"))
ORDERS_A_SECOND = 6


@pytest.mark.long
@pytest.mark.endurance
@pytest.mark.timeout(SECONDS + 400)
async def test_orders_survive_chaos(shop: Shop) -> None:
    seed = int(os.environ.get("EDDA_CHAOS_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"EDDA_CHAOS_SEED={seed}")
    dice = random.Random(seed)
    shop.start_sink()
    async with _between(shop) as proxy:
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


class Role:
    """A part that is played by one process after the other."""

    def __init__(self, name: str, start: Callable[[], Process]) -> None:
        self.name = name
        self._start = start
        self._process: Process | None = None
        self._stopped = False
        self.port = 1  # nobody listens there

    async def start(self) -> None:
        """A new process; it works when this returns."""
        self._process = self._start()
        if self.name == "gateway":
            self.port = await asyncio.to_thread(port_of, self._process)
        else:
            await self._process.line("^ready$", timeout=60)

    async def kill(self) -> None:
        """And another one takes the part."""
        assert self._process is not None
        await asyncio.to_thread(self._process.kill)
        self._stopped = False
        self._process = self._start()
        if self.name == "gateway":
            self.port = await asyncio.to_thread(port_of, self._process)

    async def stop_for(self, seconds: float) -> None:
        """Frozen meanwhile."""
        if self._process is None or self._stopped:
            return
        process, self._stopped = self._process, True
        process.pause()
        await asyncio.sleep(seconds)
        if self._process is process:
            process.resume()
            self._stopped = False

    async def heal(self) -> None:
        """Whatever was done to it is over, and it works."""
        assert self._process is not None
        self._process.resume()
        await eventually(lambda: not self._stopped, timeout=20)
        assert self._process.returncode is None, self._process.output


async def _do_harm(
    cast: list[Role], proxy: Proxy | None, dice: random.Random, until: asyncio.Task[None]
) -> Counter[str]:
    done: Counter[str] = Counter()
    loop = asyncio.get_running_loop()
    end = loop.time() + SECONDS
    async with asyncio.TaskGroup() as sleeping:
        while loop.time() < end:
            await asyncio.sleep(dice.uniform(0.2, 2.0))
            if until.done():
                until.result()
            role, what = dice.choice(cast), dice.random()
            if what < 0.08 and proxy is not None:
                await proxy.down()
                await asyncio.sleep(dice.uniform(0, 2))
                await proxy.up()
                done["connections cut"] += 1
            elif what < 0.55:
                await role.kill()
                done[f"{role.name} killed"] += 1
            else:
                # Shorter and longer than the lease.
                sleeping.create_task(role.stop_for(dice.uniform(0.2, 5)))
                done[f"{role.name} stopped"] += 1
    return done


@asynccontextmanager
async def _between(shop: Shop) -> AsyncIterator[Proxy | None]:
    """All processes reach the database through a proxy, where there is a server."""
    if shop.database.kind == "sqlite":
        yield None
        return
    async with proxied(shop.database.url) as proxy:
        shop.url = proxy.url
        await proxy.up()
        yield proxy
