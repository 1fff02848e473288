"""``EddaApp``: composes store, inbox, engine, gateways and relays; starts and stops them. No logic of its own."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

from uuid_utils import uuid7

from edda import asgi
from edda.activity import refuse_while_writing
from edda.cloudevent import CloudEvent
from edda.engine.attempt import current_attempt
from edda.engine.definitions import Definitions
from edda.engine.news import News
from edda.engine.worker import Worker, WorkerOptions
from edda.errors import (
    ConfigurationError,
    InstanceExistsError,
    InstanceNotFoundError,
    NotRunningError,
    OwnershipLostError,
    StorageUnavailableError,
)
from edda.event_handlers import EventHandler, handler_workflow
from edda.handle import Handle, outcome_of
from edda.inbox.accept import Inbox
from edda.inbox.registry import Shapes
from edda.inbox.retention import Sweeper
from edda.outbox.outlets import outlets, routed
from edda.queries import Instances
from edda.retention import Retention
from edda.retry import DEFAULT_RETRY_POLICY, RetryPolicy
from edda.storage.connect import open_store
from edda.storage.rows import EventResult, NewInstance, State, Trigger
from edda.workflow import StartOptions, Workflow, declared, running_apps
from outbox_relays.inbox import InboxPublisher
from outbox_relays.relay import Relay

if TYPE_CHECKING:
    from edda.storage.contract import Storage
    from gateways.gateway import Gateway
    from outbox_relays.publisher import Publisher

log = logging.getLogger("edda.app")

#: Instances that ``start_many`` inserts in one transaction.
_START_BATCH = 500

_NO_OPTIONS = StartOptions()

#: As in ``edda-framework 0.16``.
_MESSAGE_RETENTION_DAYS = 7

#: Seconds between two tries to start while the database is away.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 5.0


class ReplayEngine:
    """What code written for ``edda-framework 0.16`` asks of the engine."""

    def __init__(self, app: EddaApp) -> None:
        self._app = app

    async def cancel_workflow(self, instance_id: str, cancelled_by: str = "user") -> bool:
        """See ``EddaApp.cancel``."""
        return await self._app.cancel(instance_id, by=cancelled_by)


class EddaApp:
    """One service: its database, its workflows, its gateways and relays. Several can live in one process.

    Args:
        service_name: Names the app in the database; instances belong to it.
        db_url: ``sqlite:///orders.db``, ``postgresql://user:password@host/db`` or ``mysql://...``.
        workflows: What this app runs; default: every workflow declared in the process. Several versions of one name may
            be among them; events start the last one of a name.
        gateways: Where events come from beside HTTP, e.g. ``KafkaGateway(...)``, ``RabbitMQGateway(...)``.
        relays: Where outbox events go. Each is a publisher, e.g. ``HttpPublisher(url)``.
        hooks: What is told of its workflows' lives: see ``WorkflowHooks``.
        outbox_enabled, broker_url: As in ``edda-framework 0.16``: publish every event to one HTTP broker.
        work: False makes a client: it starts, queries and delivers, and runs no workflows.
        run_gateways, run_relays: False leaves them to other processes. The relays still say where events go.
        retention: How long what is over is kept; default: events for ``message_retention_days``, see ``Retention``.
        run_retention: False leaves removing it to other processes, or to ``edda retention run``.
        lease_seconds: How long a dead process's instances stay its own (kill -9 to resumed is at most this and a
            second).
        max_runs: Instances in memory at once.
        strict_arguments: Pause an instance whose replayed call has other arguments than recorded (for tests).

    The arguments that only made sense for polling in ``edda-framework 0.16`` are accepted and not needed.
    """

    #: Why its start waits for the database; None: it does not.
    waiting_for: str | None = None

    def __init__(
        self,
        service_name: str,
        db_url: str,
        outbox_enabled: bool = False,
        broker_url: str | None = None,
        hooks: object | None = None,
        default_retry_policy: RetryPolicy | None = None,
        message_retention_days: int = _MESSAGE_RETENTION_DAYS,
        pool_size: int = 5,
        max_overflow: int = 10,
        pool_timeout: int = 30,
        pool_recycle: int = 3600,
        pool_pre_ping: bool = True,
        use_listen_notify: bool | None = None,
        notify_fallback_interval: int = 30,
        max_workflows_per_batch: int | str = 10,
        leader_heartbeat_interval: int = 15,
        leader_lease_duration: int = 45,
        *,
        workflows: Iterable[Workflow[Any, Any]] | None = None,
        gateways: Sequence[Gateway] = (),
        relays: Sequence[Publisher] = (),
        work: bool = True,
        run_gateways: bool = True,
        run_relays: bool = True,
        retention: Retention | None = None,
        run_retention: bool = True,
        lease_seconds: float = 30.0,
        max_runs: int = 1_000,
        max_threads: int = 32,
        max_recoveries: int = 20,
        shutdown_timeout: float = 20.0,
        strict_arguments: bool = False,
        gateway_tokens: Sequence[str] = (),
    ) -> None:
        del pool_pre_ping, notify_fallback_interval, leader_heartbeat_interval, leader_lease_duration
        if not service_name or len(service_name.encode()) > 128:
            msg = f"service_name={service_name!r} must have 1 to 128 bytes, for example 'orders'"
            raise ConfigurationError(msg)
        if outbox_enabled and not broker_url:
            msg = "outbox_enabled=True needs broker_url, for example broker_url='http://broker/events'"
            raise ConfigurationError(msg)
        if isinstance(max_workflows_per_batch, str) and max_workflows_per_batch not in {"auto", "auto:cpu"}:
            msg = f"max_workflows_per_batch={max_workflows_per_batch!r}; use a number, 'auto' or 'auto:cpu'"
            raise ConfigurationError(msg)
        if lease_seconds < 1:
            msg = f"lease_seconds={lease_seconds} leaves no room for a missed renewal; use at least 1"
            raise ConfigurationError(msg)
        self.service_name = service_name
        self.db_url = db_url
        self.outbox_enabled = outbox_enabled
        self.broker_url = broker_url
        self.hooks = hooks
        self.default_retry_policy = default_retry_policy
        self.message_retention_days = message_retention_days
        self.retention = _retention(retention, message_retention_days)
        self.store: Storage = open_store(
            db_url,
            pool_size=pool_size,
            max_overflow=max_overflow,
            pool_timeout=pool_timeout,
            pool_recycle=pool_recycle,
        )
        if use_listen_notify and not self.store.has_hints:
            msg = f"use_listen_notify=True needs PostgreSQL; this database is {self.store.dialect}"
            raise ConfigurationError(msg)
        self._publishers = list(relays)
        if outbox_enabled and broker_url:
            from outbox_relays.http import HttpPublisher

            self._publishers.append(HttpPublisher(broker_url, mode="structured"))
        _need_different("gateways", "name", [gateway.name for gateway in gateways])
        _need_different("relays", "destination", [publisher.destination for publisher in self._publishers])
        self._options = WorkerOptions(
            lease_seconds=lease_seconds,
            max_runs=max_runs,
            max_threads=max_threads,
            max_recoveries=max_recoveries,
            shutdown_timeout=shutdown_timeout,
            strict_arguments=strict_arguments,
            default_policy=default_retry_policy or DEFAULT_RETRY_POLICY,
            hooks=hooks,
        )
        self.work = work
        self.run_gateways, self.run_relays, self.run_retention = run_gateways, run_relays, run_retention
        self._given = None if workflows is None else list(workflows)
        self._handlers: list[EventHandler] = []
        self.workflows: dict[str, Workflow[Any, Any]] = {}  # by name; of several versions the current one
        self._versions: dict[tuple[str, str | None], Workflow[Any, Any]] = {}
        self._inbox: Inbox | None = None
        self._worker: Worker | None = None
        self._news: News | None = None
        self._parts = AsyncExitStack()
        self.gateways = tuple(gateways)
        self.relays: list[Relay] = []
        self._forwarding: Relay | None = None  # of channel messages into the inbox; nobody's relay
        self._initialized = False
        self.was_initialized = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._starting: asyncio.Lock | None = None
        self._asgi = asgi.compose(self, tokens=gateway_tokens)

    # ------------------------------------------------------------------ life

    async def initialize(self) -> None:
        """Connect, migrate, declare triggers, begin to work. Idempotent.

        A database that is down is waited for, with backoff; each try is logged and shown by ``/readyz``. What can never
        work is raised, and nothing is left running.
        """
        if self._starting is None:
            self._starting = asyncio.Lock()
        async with self._starting:
            pause = _FIRST_PAUSE
            while not self._initialized:
                try:
                    async with AsyncExitStack() as stack:
                        await self._start(stack)
                        self._parts = stack.pop_all()
                except StorageUnavailableError as error:
                    self.waiting_for = str(error)
                    log.warning("waiting_for_database", extra={"app": self.service_name, "error": str(error)})
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, _LONGEST_PAUSE)
            self.waiting_for = None

    async def _start(self, stack: AsyncExitStack) -> None:
        """Each part with what stops it; the last to start stops first."""
        self._versions = self._collect()
        self.workflows = {workflow.name: workflow for workflow in self._versions.values()}
        stack.push_async_callback(self.store.close)
        await self.store.open(int(self._options.lease_seconds * 1_000_000))
        await self.store.migrate()
        shapes = Shapes(self.store)
        news = News(self.store, self.service_name)
        news.on_outbox = self._kick_relays
        definitions = Definitions(workflow.definition for workflow in self._versions.values())
        worker = Worker(
            self.store,
            self.service_name,
            definitions if self.work else Definitions(),
            shapes,
            self._options,
            news,
            self.deliver_events,
            self._outbox_news,
            self.destinations,
        )
        shapes.on_woken = worker.woken
        inbox = self._inbox = Inbox(self.store, on_woken=worker.woken)
        await self.store.declare_triggers(self._triggers())
        stack.push_async_callback(news.stop)
        if self.work or (self._publishers and self.run_relays):
            news.start(beats=self.work)
        for publisher in self._publishers if self.run_relays else ():
            self.relays.append(await self._start_relay(publisher, stack, news))
        if self.work:
            self._forwarding = await self._start_relay(InboxPublisher(inbox), stack, news)
        stack.callback(self.relays.clear)
        if self.work:
            stack.push_async_callback(worker.stop)
            await worker.start()
            await self._start_retention(stack)
        stack.push_async_callback(inbox.close)
        self._worker, self._news = worker, news
        for gateway in self.running_gateways:
            stack.push_async_callback(gateway.stop)
            await gateway.start(inbox)
        self._loop = asyncio.get_running_loop()
        self._initialized = self.was_initialized = True
        running_apps.append(self)
        outlets.append(self)
        log.info("app_ready", extra={"app": self.service_name, "database": self.store.dialect})

    async def _start_retention(self, stack: AsyncExitStack) -> None:
        """Whoever works says what the app keeps, also where another process sees to it."""
        sweeper = Sweeper(self.store, self._outbox_news)
        await sweeper.declare(self.service_name, self.retention.keeps())
        if self.run_retention:
            stack.push_async_callback(sweeper.stop)
            sweeper.start()

    async def _start_relay(self, publisher: Publisher, stack: AsyncExitStack, news: News) -> Relay:
        lease = max(self._options.lease_seconds, 2 * publisher.publish_timeout)
        relay = Relay(self.store, publisher, lease_seconds=lease, on_work=news.active)
        stack.push_async_callback(relay.stop)
        await relay.start()
        return relay

    async def shutdown(self) -> None:
        """Stop: take in and claim no more, let turns finish within ``shutdown_timeout``, give leases back."""
        if not self._initialized:
            await self.store.close()
            return
        self._initialized = False
        running_apps.remove(self)
        outlets.remove(self)
        await self._parts.aclose()
        self._worker = self._inbox = self._news = self._forwarding = None

    async def __aenter__(self) -> Self:
        """``async with EddaApp(...)``."""
        await self.initialize()
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Shut down."""
        await self.shutdown()

    def _collect(self) -> dict[tuple[str, str | None], Workflow[Any, Any]]:
        found: dict[tuple[str, str | None], Workflow[Any, Any]] = {}
        given = self._given if self._given is not None else list(declared.values())
        for workflow in [*given, *(handler.workflow for handler in self._handlers)]:
            other = found.setdefault((workflow.name, workflow.version), workflow)
            if other is not workflow:
                msg = (
                    f"app {self.service_name!r}: two workflows are called {workflow.name!r} "
                    f"({other.place} and {workflow.place}). "
                    'Give one of them a stored name of its own, @workflow(name="..."), or, if the one replaces the '
                    'other, a version: @workflow(version="2").'
                )
                raise ConfigurationError(msg)
        return found

    def _triggers(self) -> list[Trigger]:
        triggers = []
        for workflow in self.workflows.values():
            if workflow.on is not None:
                policy = "event" if workflow.key is None else "key"
                triggers.append(
                    Trigger(
                        self.service_name, workflow.name, workflow.on, workflow.key, workflow.version, policy
                    )
                )
            if workflow.event_handler and not any(h.event_type == workflow.name for h in self._handlers):
                triggers.append(
                    Trigger(self.service_name, workflow.name, workflow.name, None, workflow.version)
                )
        return triggers

    # ------------------------------------------------------------------ events

    def on_event(self, event_type: str, proto_type: object = None) -> Callable[[Any], Any]:
        """Call ``async def handler(event)`` for every event of this type: durably, retried, once per event and handler.

        Register before ``initialize()``. A handler that keeps failing leaves a failed instance with the reason.
        """
        del proto_type

        def register(
            handler: Callable[[Any], Coroutine[Any, Any, Any]],
        ) -> Callable[[Any], Coroutine[Any, Any, Any]]:
            if self._initialized:
                msg = f"on_event({event_type!r}): register handlers before app.initialize()"
                raise ConfigurationError(msg)
            self._handlers.append(handler_workflow(event_type, handler))
            return handler

        return register

    async def deliver(self, events: CloudEvent | Sequence[CloudEvent]) -> list[EventResult]:
        """Accept events: the door that every gateway uses. Returns, after the commit, what became of each."""
        one = [events] if isinstance(events, CloudEvent) else list(events)
        refuse_while_writing(current_attempt.get(), "app.deliver()")
        return await self.inbox.deliver(one)

    async def deliver_events(self, events: Sequence[CloudEvent]) -> list[EventResult]:
        """For Edda's own modules: as ``deliver``, also while the app starts and stops."""
        return await (self._inbox or self.inbox).deliver(events)

    async def handle_cloudevent(self, event: Any, wait: bool = False) -> None:
        """As in ``edda-framework 0.16``; the event is durable when this returns."""
        del wait
        await self.deliver(asgi.cloudevent_of(event))

    # ------------------------------------------------------------------ work

    def has_workflow(self, workflow: Workflow[Any, Any]) -> bool:
        """Whether this app has exactly this workflow."""
        return self._versions.get((workflow.name, workflow.version)) is workflow

    async def start(self, workflow: Workflow[Any, Any], **kwargs: Any) -> str:
        """``workflow.start(**kwargs)`` in this app."""
        return await self.start_workflow(workflow, kwargs, StartOptions())

    async def submit(self, workflow: Workflow[Any, Any], **kwargs: Any) -> Handle:
        """``workflow.submit(**kwargs)`` in this app."""
        return await self.submit_workflow(workflow, kwargs, StartOptions())

    async def start_workflow(
        self, workflow: Workflow[Any, Any], kwargs: dict[str, Any], options: StartOptions
    ) -> str:
        """See ``Workflow.start``."""
        new = self._new_instance(workflow, kwargs, options)
        if not self.work or self.worker.stopping:
            return await self._follow((await self._insert(new, options)).id)
        released = await self.worker.start_inline(_owned(new, self.worker.owner), wait=True)
        assert released is not None  # noqa: S101, wait=True
        if isinstance(released.error, InstanceExistsError):
            if options.idempotency_key is not None:
                return new.id
            raise released.error
        if released.state is None and not _went_elsewhere(released.error):
            raise released.error  # type: ignore[misc]
        if released.state is State.WAITING and released.user_visible:
            return released.instance_id
        if released.state in {None, State.RUNNABLE, State.WAITING, State.RECURRED}:
            # Lost to another worker, given back, or parked on a retry: the outcome is still to come.
            return await self._follow(released.instance_id)
        if released.error is not None:
            raise released.error
        return released.instance_id

    async def _follow(self, instance_id: str) -> str:
        """Until it has ended: raise its exception, or give the id of the last run of its chain."""
        row = await self.handle(instance_id).chain_ended()
        if row.state is not State.CANCELLED:
            outcome_of(row)
        return row.id

    async def submit_workflow(
        self, workflow: Workflow[Any, Any], kwargs: dict[str, Any], options: StartOptions
    ) -> Handle:
        """See ``Workflow.submit``."""
        new = self._new_instance(workflow, kwargs, options)
        if not self.work or options.delay is not None or self.worker.full:
            return await self._insert(new, options)
        released = await self.worker.start_inline(_owned(new, self.worker.owner), wait=False)
        if released is not None and released.error is not None and released.state is None:
            if isinstance(released.error, InstanceExistsError) and options.idempotency_key is not None:
                return self.handle(new.id)
            if not _went_elsewhere(released.error):
                raise released.error
        return self.handle(new.id)

    async def start_many(
        self,
        workflow: Workflow[Any, Any],
        many: Iterable[Mapping[str, Any]],
        options: StartOptions = _NO_OPTIONS,
    ) -> list[Handle]:
        """See ``Workflow.start_many``."""
        news = [self._new_instance(workflow, kwargs, options) for kwargs in many]
        for at in range(0, len(news), _START_BATCH):
            await self.store.insert_instances(news[at : at + _START_BATCH])
            self.worker.woken({self.service_name})
        return [self.handle(new.id) for new in news]

    async def _insert(self, new: NewInstance, options: StartOptions) -> Handle:
        [inserted] = await self.store.insert_instances([new])
        if not inserted:
            if options.idempotency_key is not None:
                return self.handle(new.id)
            msg = f"instance {new.id!r}: the id is taken; nothing was started"
            raise InstanceExistsError(msg)
        self.worker.woken({self.service_name})
        return self.handle(new.id)

    def _new_instance(
        self, workflow: Workflow[Any, Any], kwargs: Mapping[str, Any], options: StartOptions
    ) -> NewInstance:
        self._need_running()
        if not self.has_workflow(workflow):
            known = sorted(self.workflows)
            msg = f"app {self.service_name!r} does not have the workflow {workflow.name!r}; it has {known}"
            raise ConfigurationError(msg)
        refuse_while_writing(current_attempt.get(), f"{workflow.name}.start()")
        return NewInstance(
            id=_instance_id(self.service_name, workflow.name, options),
            app=self.service_name,
            workflow=workflow.name,
            input=workflow.parameters.encode(kwargs),
            version=workflow.version,
            priority=options.priority,
            delay_us=0 if options.delay is None else int(options.delay.total_seconds() * 1_000_000),
        )

    async def cancel(self, instance_id: str, *, by: str = "user", wait: float | None = 30.0) -> bool:
        """Cancel an instance: see ``Handle.cancel``. False also for one that does not exist."""
        try:
            return await self.handle(instance_id).cancel(by=by, wait=wait)
        except InstanceNotFoundError:
            return False

    @property
    def replay_engine(self) -> ReplayEngine | None:
        """As in ``edda-framework 0.16``: ``await app.replay_engine.cancel_workflow(id)``; None before initialize."""
        return ReplayEngine(self) if self._initialized else None

    async def resume_instance(self, instance_id: str) -> None:
        """See ``Workflow.resume``."""
        handle = self.handle(instance_id)
        if not await handle.resume():
            await handle.need_not_failed()

    def handle(self, instance_id: str) -> Handle:
        """A handle on an instance, wherever it runs."""
        return Handle(instance_id, self.store, self._worker if self.work else None)

    # ------------------------------------------------------------------ queries

    @property
    def storage(self) -> Instances:
        """Queries: ``await app.storage.get_instance(id)``; ``app.storage.engine``."""
        return Instances(self.store, self.deliver_events)

    async def find_instances(self, **filters: Any) -> dict[str, Any]:
        """Find instances, newest first: see ``Instances.find_instances``."""
        return await Instances(self.store).find_instances(**filters)

    # ------------------------------------------------------------------ parts

    @property
    def inbox(self) -> Inbox:
        """The way in. Raises NotRunningError before ``initialize()``."""
        self._need_running()
        assert self._inbox is not None  # noqa: S101, running
        return self._inbox

    @property
    def worker(self) -> Worker:
        """The engine's worker. Raises NotRunningError before ``initialize()``."""
        self._need_running()
        assert self._worker is not None  # noqa: S101, running
        return self._worker

    @property
    def running_gateways(self) -> tuple[Gateway, ...]:
        """Those of its gateways that run in this process."""
        return self.gateways if self.run_gateways else ()

    @property
    def ready(self) -> bool:
        """Whether ``initialize()`` has finished."""
        return self._initialized

    def _need_running(self) -> None:
        if not self._initialized:
            msg = f"app {self.service_name!r} is not initialised; call 'await app.initialize()' first"
            raise NotRunningError(msg)

    def _outbox_news(self, destinations: frozenset[str] | None = None) -> None:
        """A commit of this process left rows in the outbox for these destinations (None: nobody knows which)."""
        self._kick_relays(destinations)
        here = {relay.destination for relay in self._all_relays()}
        if self._news is not None and (destinations is None or not destinations <= here):
            self._news.outbox()

    def _kick_relays(self, destinations: frozenset[str] | None = None) -> None:
        for relay in self._all_relays():
            if destinations is None or relay.destination in destinations:
                relay.kick()

    def _all_relays(self) -> list[Relay]:
        return self.relays if self._forwarding is None else [*self.relays, self._forwarding]

    def destinations(self, event_type: str) -> list[str]:
        """Where events of this type go from the outbox: to every relay that takes it."""
        return routed(self._publishers, event_type)

    def outbox_news(self) -> None:
        """A session of the user's has committed rows of the outbox. From any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._outbox_news)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI: events in, ``/cancel/{id}``, ``/healthz``, ``/readyz``, lifespan."""
        await self._asgi(scope, receive, send)


def _need_different(setting: str, name: str, values: list[str]) -> None:
    for value in values:
        if values.count(value) > 1:
            msg = f"{setting}: two of them have {name}={value!r}. Give each one of its own, e.g. {name}='{value}-2'."
            raise ConfigurationError(msg)


def _retention(retention: Retention | None, message_retention_days: int) -> Retention:
    if retention is None:
        return Retention.of_days(message_retention_days)
    if message_retention_days != _MESSAGE_RETENTION_DAYS:
        msg = (
            f"message_retention_days={message_retention_days!r} and retention= both say how long events are kept. "
            "Use retention=Retention(events=timedelta(days=...)) alone."
        )
        raise ConfigurationError(msg)
    return retention


def _owned(new: NewInstance, owner: str) -> NewInstance:
    return replace(new, owner=owner)


def _went_elsewhere(error: BaseException | None) -> bool:
    return isinstance(error, OwnershipLostError)


def _instance_id(app: str, workflow: str, options: StartOptions) -> str:
    if options.id is not None:
        given = options.id
        if not 1 <= len(given) <= 128 or not all("!" <= char <= "~" for char in given):
            msg = f"id={given!r} must be 1 to 128 printable ASCII characters without blanks, for example 'order-42'"
            raise ConfigurationError(msg)
        return given
    if options.idempotency_key is not None:
        # The id follows from the key, so that the primary key itself refuses the second start.
        digest = hashlib.sha256(f"{app}\0{workflow}\0{options.idempotency_key}".encode()).hexdigest()
        return f"key-{digest[:48]}"
    return str(uuid7())
