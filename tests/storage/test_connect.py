"""From a URL to a store: each way to write one, and what is said of one that cannot be used."""

import os
import sys
from pathlib import Path

import pytest

from edda.errors import ConfigurationError, MissingExtraError, StorageUnavailableError
from edda.storage.connect import open_store
from tests.storage import given

PASSWORD = "hunter2"


@pytest.mark.parametrize(
    ("url", "dialect"),
    [
        ("sqlite:///orders.db", "sqlite"),
        ("sqlite+aiosqlite:///orders.db", "sqlite"),
        ("postgresql://u:hunter2@h/d", "postgresql"),
        ("postgres://u:hunter2@h/d", "postgresql"),
        ("postgresql+asyncpg://u:hunter2@h/d", "postgresql"),
        ("mysql://u:hunter2@h/d", "mysql"),
        ("mysql+aiomysql://u:hunter2@h/d", "mysql"),
        ("mariadb://u:hunter2@h/d", "mysql"),
        ("mariadb+aiomysql://u:hunter2@h/d", "mysql"),
        ("memory:", "memory"),
        ("memory://", "memory"),
    ],
)
async def test_a_url_opens_the_store_of_its_database(url: str, dialect: str) -> None:
    store = open_store(url)
    assert store.dialect == dialect
    assert PASSWORD not in repr(store)
    await store.close()


@pytest.mark.parametrize(
    "url",
    [
        "oracle://u:hunter2@h/d",
        "mysql+pymysql://u:hunter2@h/d",
        "postgresql+psycopg2://u:hunter2@h/d",
        "PostgreSQL://u:hunter2@h/d",
        "sqlite3:///orders.db?hunter2",
    ],
)
def test_an_unknown_scheme_is_named_and_the_known_ones_are_told(url: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        open_store(url)
    text = str(refused.value)
    assert repr(url.split("://", maxsplit=1)[0]) in text
    assert all(scheme in text for scheme in ("sqlite:///", "postgresql://", "mysql://"))
    assert PASSWORD not in text


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hunter2",
        "u:hunter2@h/d",
        "postgresql//u:hunter2@h/d",
        "postgresql://u:hunter2@h:port/d",
        "mysql://u:hunter2@h:33 06/d",
        "://u:hunter2@h/d",
    ],
)
def test_a_url_that_cannot_be_read_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        open_store(url)
    text = str(refused.value)
    assert "cannot be read" in text
    assert "postgresql://user:password@host/database" in text
    assert PASSWORD not in text
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__, "the library's own error shows the URL"


@pytest.mark.parametrize(
    ("url", "module", "extra"),
    [
        ("postgresql://u:hunter2@h/d", "asyncpg", "postgresql"),
        ("mysql://u:hunter2@h/d", "aiomysql", "mysql"),
        ("mariadb://u:hunter2@h/d", "aiomysql", "mysql"),
    ],
)
def test_a_missing_driver_says_which_extra_to_install(
    url: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What an import finds when the package is not there.
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"pip install .*{extra}") as refused:
        open_store(url)
    assert refused.value.extra == extra
    assert PASSWORD not in str(refused.value)


async def test_the_pool_can_be_sized_whatever_the_database() -> None:
    for url in ("memory:", "sqlite://", "postgresql://u@h/d", "mysql://u@h/d"):
        store = open_store(url, pool_size=1, max_overflow=0, pool_timeout=1, pool_recycle=1)
        await store.close()


@pytest.mark.parametrize("kind", ["postgresql", "mysql"])
async def test_a_server_that_is_not_there_is_unavailable_and_no_password_is_told(kind: str) -> None:
    store = open_store(f"{kind}://root:hunter2@127.0.0.1:9/edda")
    with pytest.raises(StorageUnavailableError) as failure:
        await store.open()
    assert PASSWORD not in f"{failure.value} {failure.value.__cause__!r}"
    await store.close()


async def test_a_directory_that_is_not_there_is_named_with_what_to_do(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/missing/orders.db")
    with pytest.raises(ConfigurationError, match=r"missing.*mkdir"):
        await store.open()
    await store.close()


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "sqlite+aiosqlite://"])
async def test_a_sqlite_url_without_a_file_is_a_temporary_one_of_its_own(url: str) -> None:
    stores = [open_store(url), open_store(url)]
    for store in stores:
        await store.open()
        await store.migrate()
    await given.started(stores[0], "order")
    assert await stores[1].get_instance("order") is None
    async with stores[0].engine().begin() as connection:
        path = (await connection.exec_driver_sql("PRAGMA database_list")).mappings().one()["file"]
    assert os.path.exists(path)  # noqa: ASYNC240, PTH110, a test may wait for its disk
    for store in stores:
        await store.close()
    assert not os.path.exists(path)  # noqa: ASYNC240, PTH110, the same


async def test_memory_stores_share_nothing() -> None:
    one, two = open_store("memory:"), open_store("memory:")
    await given.started(one, "order")
    assert await two.get_instance("order") is None
