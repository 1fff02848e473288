"""What a replay would not do again, why, and what to write instead. One table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rule:
    """A fact about some calls. ``names`` are full names as imported; one that ends in a dot takes all below it."""

    code: str
    names: tuple[str, ...]
    why: str
    instead: str


_TIME = "a replay reads another time"
_RANDOM = "a replay draws another number"
_IDS = "a replay makes another id"
_ACTIVITY = "move it into an @activity: its result is recorded"
_IO = "a replay does it again, and may be answered otherwise"

ENVIRONMENT = Rule(
    "environment",
    ("os.getenv", "os.environ", "os.environb"),
    "another process has another one",
    "an argument of the workflow, or an @activity that reads it",
)

RULES: tuple[Rule, ...] = (
    Rule(
        "time",
        (
            "datetime.datetime.now",
            "datetime.datetime.utcnow",
            "datetime.datetime.today",
            "datetime.date.today",
            "time.time",
            "time.time_ns",
            "time.monotonic",
            "time.monotonic_ns",
            "time.perf_counter",
            "time.perf_counter_ns",
            "time.localtime",
            "time.gmtime",
        ),
        _TIME,
        "ctx.now()",
    ),
    Rule("random", ("random.", "secrets.", "numpy.random."), _RANDOM, "ctx.random()"),
    Rule("uuid", ("uuid.uuid1", "uuid.uuid4", "uuid.uuid6", "uuid.uuid7", "os.urandom"), _IDS, "ctx.uuid4()"),
    Rule(
        "sleep",
        ("time.sleep", "asyncio.sleep"),
        "it is not durable: a crash forgets it, and time.sleep stops every other workflow of the process",
        "await sleep(ctx, seconds)",
    ),
    ENVIRONMENT,
    Rule(
        "files",
        ("open", "io.open", "os.open", "os.listdir", "os.scandir", "os.stat", "input", "pathlib.Path.cwd"),
        _IO,
        _ACTIVITY,
    ),
    Rule(
        "network",
        (
            "requests.",
            "httpx.",
            "aiohttp.",
            "urllib.request.",
            "urllib3.",
            "socket.",
            "smtplib.",
            "http.client.",
        ),
        _IO,
        _ACTIVITY,
    ),
    Rule(
        "process",
        (
            "subprocess.",
            "os.system",
            "os.popen",
            "asyncio.create_subprocess_exec",
            "asyncio.create_subprocess_shell",
        ),
        _IO,
        _ACTIVITY,
    ),
    Rule(
        "threads",
        (
            "threading.",
            "multiprocessing.",
            "concurrent.futures.",
            "asyncio.to_thread",
            "asyncio.run",
            "asyncio.run_coroutine_threadsafe",
            "asyncio.new_event_loop",
        ),
        "when a thread goes on is decided anew in each replay",
        "make it a sync @activity, which runs in a thread, or an async one and asyncio.gather",
    ),
)

SET_ORDER = Rule(
    "set-order",
    (),
    "the order of a set follows from hashes, which differ between processes",
    "sorted(...), or a list or dict, which keep their order",
)

AS_COMPLETED = Rule(
    "as-completed",
    ("asyncio.as_completed",),
    "it makes tasks of coroutines in the order of a set, which differs in each replay",
    "asyncio.as_completed([asyncio.create_task(one) for one in ...])",
)
