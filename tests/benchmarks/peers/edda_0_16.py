"""edda-framework 0.16. Its ``edda`` is another package than ours, with the same names."""

from __future__ import annotations

import asyncio
import json
import sys
import time

from edda import EddaApp, WorkflowContext, activity, workflow


@activity
async def step(ctx: WorkflowContext, number: int) -> dict[str, int]:
    return {"number": number + 1}


@workflow
async def five_steps(ctx: WorkflowContext, number: int) -> dict[str, int]:
    for _ in range(5):
        number = (await step(ctx, number))["number"]
    return {"number": number}


async def main(url: str, in_flight: int, seconds: float) -> None:
    app = EddaApp(service_name="bench", db_url=url)
    await app.initialize()
    # Alone: concurrent first starts of a workflow violate the key of its table of definitions.
    await five_steps.start(number=0)
    began, until = time.perf_counter(), time.perf_counter() + seconds
    cpu = time.process_time()

    async def one_after_the_other() -> int:
        started = 0
        while time.perf_counter() < until:
            await five_steps.start(number=started)
            started += 1
        return started

    completed = sum(await asyncio.gather(*(one_after_the_other() for _ in range(in_flight))))
    took = time.perf_counter() - began
    print(
        json.dumps({"completed": completed, "before": 1, "seconds": took, "cpu": time.process_time() - cpu})
    )
    await app.shutdown()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
