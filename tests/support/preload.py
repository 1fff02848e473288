"""What the processes of the tests would import one by one, imported once: they are forked from one that has it."""

import gc

import aio_pika
import aiohttp
import aiokafka
import aiomysql
import aiosqlite
import asyncpg
import httpx
import sqlalchemy.dialects.mysql.aiomysql
import sqlalchemy.dialects.postgresql.asyncpg
import sqlalchemy.dialects.sqlite.aiosqlite
import uvicorn
import uvicorn.lifespan.on
import uvicorn.loops.asyncio
import uvicorn.protocols.http.h11_impl

from edda.storage.connect import open_store
from tests.crash import nursery, programs

__all__ = [
    "aio_pika",
    "aiohttp",
    "aiokafka",
    "aiomysql",
    "aiosqlite",
    "asyncpg",
    "httpx",
    "nursery",
    "programs",
    "sqlalchemy",
    "uvicorn",
]

for url in ("sqlite:///nobody.db", "postgresql://nobody@localhost/x", "mysql://nobody@localhost/x"):
    open_store(url)
# Not looked at again by any collection: the memory stays shared.
gc.collect()
gc.freeze()
