"""DBOS 3, with async workflows."""

from __future__ import annotations

import asyncio
import json
import sys
import time

from dbos import DBOS  # type: ignore[import-not-found]  # installed in this script's own interpreter only


@DBOS.step()  # type: ignore[untyped-decorator]  # as above
async def step(number: int) -> dict[str, int]:
    return {"number": number + 1}


@DBOS.workflow()  # type: ignore[untyped-decorator]  # as above
async def five_steps(number: int) -> int:
    for _ in range(5):
        number = (await step(number))["number"]
    return number


async def main(url: str, in_flight: int, seconds: float) -> None:
    DBOS(config={"name": "bench", "system_database_url": url, "log_level": "ERROR"})
    DBOS.launch()
    began, until = time.perf_counter(), time.perf_counter() + seconds
    cpu = time.process_time()

    async def one_after_the_other() -> int:
        started = 0
        while time.perf_counter() < until:
            await five_steps(started)
            started += 1
        return started

    completed = sum(await asyncio.gather(*(one_after_the_other() for _ in range(in_flight))))
    took = time.perf_counter() - began
    print(
        json.dumps({"completed": completed, "before": 0, "seconds": took, "cpu": time.process_time() - cpu})
    )
    DBOS.destroy()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
