"""``edda lint``: finds what a replay would not do again, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import dedent, indent

import pytest
from typer.testing import CliRunner

from edda.cli.lint.check import Finding, check_source
from edda.cli.main import app

HEAD = """
import asyncio, os, random, secrets, threading, time, uuid
import datetime as dt
import numpy as np
import requests, httpx
from concurrent.futures import ThreadPoolExecutor
from datetime import date, datetime
from pathlib import Path
from random import choice as pick
from edda import WorkflowContext, activity, sleep, wait_event, workflow
"""


def found(body: str, *, before: str = "") -> list[Finding]:
    """Findings in a workflow with this body."""
    head = (
        HEAD
        + dedent(before)
        + "\n@workflow\nasync def order(ctx: WorkflowContext, items: list[str]) -> None:\n"
    )
    return check_source(head + indent(dedent(body), "    "), "shop.py")


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("x = datetime.now()", "time"),
        ("x = dt.datetime.utcnow()", "time"),
        ("x = date.today()", "time"),
        ("x = time.time() + 1", "time"),
        ("x = time.monotonic()", "time"),
        ("time.sleep(1)", "sleep"),
        ("await asyncio.sleep(5)", "sleep"),
        ("x = random.random()", "random"),
        ("x = pick(items)", "random"),
        ("x = random.Random()", "random"),
        ("x = secrets.token_hex()", "random"),
        ("x = np.random.rand()", "random"),
        ("x = uuid.uuid4().hex", "uuid"),
        ("x = f'{uuid.uuid1()}'", "uuid"),
        ("x = os.urandom(8)", "uuid"),
        ("x = os.environ['HOME']", "environment"),
        ("x = os.environ.get('HOME')", "environment"),
        ("x = os.getenv('HOME')", "environment"),
        ("if 'HOME' in os.environ: pass", "environment"),
        ("with open('orders.csv') as file: pass", "files"),
        ("x = Path.cwd()", "files"),
        ("x = requests.get('https://example.org')", "network"),
        ("async with httpx.AsyncClient() as client: pass", "network"),
        ("threading.Thread(target=print).start()", "threads"),
        ("with ThreadPoolExecutor() as pool: pass", "threads"),
        ("await asyncio.to_thread(print)", "threads"),
        ("for x in {1, 2}: print(x)", "set-order"),
        ("for x in set(items): print(x)", "set-order"),
        ("x = list(frozenset(items))", "set-order"),
        ("x = [one for one in set(items) - {'a'}]", "set-order"),
        ("await asyncio.gather(*{print(one) for one in items})", "set-order"),
        ("known = set(items)\nfor one in known: print(one)", "set-order"),
        ("known: set[str] = load()\nx = ', '.join(known)", "set-order"),
        ("x = set(items).pop()", "set-order"),
        ("for one in asyncio.as_completed([wait_event(ctx, 'a'), sleep(ctx, 1)]): await one", "as-completed"),
        ("for one in asyncio.as_completed(sleep(ctx, one) for one in items): await one", "as-completed"),
    ],
)
def test_it_is_found(line: str, code: str) -> None:
    (finding,) = found(line)
    assert finding.code == code
    assert finding.workflow == "order"
    assert finding.line == len(HEAD.splitlines()) + 4 + line.count("\n")
    assert finding.why
    assert finding.instead


@pytest.mark.parametrize(
    "body",
    [
        "x = ctx.now(), ctx.random().random(), ctx.uuid4()",
        "await sleep(ctx, 5)\nawait asyncio.sleep(0)",
        "x = datetime(2026, 1, 1), dt.timedelta(days=1), datetime.fromisoformat('2026-01-01')",
        "x = uuid.uuid5(uuid.NAMESPACE_URL, 'a'), uuid.UUID(int=1)",
        "x = random.Random(42).random()",
        "x = os.path.join('a', 'b'), Path('a') / 'b'",
        "x = sorted(set(items)), len({1, 2}), 1 in {1, 2}, sum(one for one in {1, 2}), max(set(items))",
        "x = {one for one in set(items)}",
        "for one in sorted(set(items)): print(one)",
        "known = set(items)\nknown = sorted(known)\nfor one in known: print(one)",
        "random = ctx.random()\nx = random.random()\ntime = ctx.now()\nx = time.time()",
        "open = ctx.open\nopen('a')",
        "async with asyncio.TaskGroup() as group: group.create_task(sleep(ctx, 1))",
        "async with asyncio.timeout(5): await asyncio.gather(*[sleep(ctx, 1)], wait_event(ctx, 'a'))",
        "tasks = {asyncio.create_task(sleep(ctx, 1))}\nfor one in tasks: await one",
        "for one in asyncio.as_completed([asyncio.create_task(sleep(ctx, 1))]): await one",
        "for one in {'a': 1}: print(one)",
    ],
)
def test_it_is_left_alone(body: str) -> None:
    assert found(body) == []


def test_activities_may_do_what_they_like_also_inside_a_workflow() -> None:
    before = """
    @activity
    async def fetch(ctx, url):
        return requests.get(url), datetime.now()

    def never_called():
        return time.time()
    """
    assert not found(
        """
        @activity(retry_policy=None)
        async def inner(ctx):
            return time.time()
        await fetch(ctx, await inner(ctx))
        """,
        before=before,
    )


def test_functions_of_the_module_that_a_workflow_calls_are_looked_at_and_named_with_it() -> None:
    before = """
    def deadline():
        return later(1)

    def later(hours):
        return datetime.now() + dt.timedelta(hours=hours)
    """
    (finding,) = found("x = deadline()", before=before)
    assert (finding.line, finding.workflow) == (len(HEAD.splitlines()) + 6, "order")


def test_a_function_inside_a_workflow_belongs_to_it() -> None:
    (finding,) = found(
        """
        async def part():
            return uuid.uuid4()
        await asyncio.gather(part(), part())
        """
    )
    assert finding.code == "uuid"


def test_a_parameter_hides_what_is_imported_under_its_name() -> None:
    source = HEAD + "@workflow\nasync def order(ctx, time, uuid):\n    return time.time(), uuid.uuid4()\n"
    assert check_source(source, "shop.py") == []


def test_what_is_no_workflow_is_not_looked_at() -> None:
    assert check_source(HEAD + "async def order(ctx):\n    return time.time()\n", "shop.py") == []
    other = HEAD.replace("edda", "elsewhere")
    assert check_source(other + "@workflow\nasync def order(ctx):\n    return time.time()\n", "shop.py") == []


def test_a_workflow_is_known_under_whatever_name_it_is_imported() -> None:
    for head, decorator in (
        ("import edda", "edda.workflow"),
        ("import edda as e", "e.workflow(on='order.created')"),
        ("from edda.workflow import workflow as flow", "flow"),
    ):
        source = f"{head}\nimport time\n@{decorator}\nasync def order(ctx):\n    return time.time()\n"
        assert len(check_source(source, "shop.py")) == 1, decorator


def test_a_line_that_allows_it_is_silent() -> None:
    assert found("x = time.time()  # edda: allow, it is logged only") == []
    assert found("x = list(\n    set(items),  # edda: allow\n)") == []
    assert len(found("x = 1  # edda: allow\ny = time.time()")) == 1


# ---------------------------------------------------------------------------------------------- the command

BAD = "import time\nfrom edda import workflow\n@workflow\nasync def order(ctx):\n    return time.time()\n"


def test_the_command_says_where_why_and_what_instead_and_exits_with_one(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(BAD)
    result = CliRunner().invoke(app, ["lint", str(tmp_path)])
    assert result.exit_code == 1
    assert f"{tmp_path / 'shop.py'}:5:12: [time] time.time() in workflow 'order'" in result.output
    assert "ctx.now()" in result.output


def test_the_command_prints_one_document_for_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "shop"
    (package / ".venv").mkdir(parents=True)
    (package / "orders.py").write_text(BAD)
    (package / ".venv" / "other.py").write_text(BAD)
    monkeypatch.chdir(tmp_path)
    for given in ("shop", "shop.orders", "shop/orders.py", "."):
        result = CliRunner().invoke(app, ["lint", given, "--json"])
        assert result.exit_code == 1
        (finding,) = json.loads(result.stdout)
        assert (finding["file"], finding["line"], finding["code"]) == (
            "shop/orders.py",
            5,
            "time",
        ) or given != "shop"


def test_the_command_is_content_with_code_that_replays(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(BAD.replace("time.time()", "ctx.now()"))
    result = CliRunner().invoke(app, ["lint", str(tmp_path), "--json"])
    assert (result.exit_code, json.loads(result.stdout)) == (0, [])


def test_what_is_not_there_or_no_python_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def")
    for given in (tmp_path / "none", tmp_path / "broken.py"):
        result = CliRunner().invoke(app, ["lint", str(given)])
        assert result.exit_code == 1
        assert str(given) in str(result.exception)


def test_the_repositorys_own_workflows_pass() -> None:
    root = Path(__file__).parents[2]
    folders = [str(root / name) for name in ("edda", "examples") if (root / name).exists()]
    result = CliRunner().invoke(app, ["lint", *folders])
    assert result.exit_code == 0, result.output
