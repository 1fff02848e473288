"""Edda: durable workflows in your own database, and an event gateway around them.

The way of one event::

    Kafka record / AMQP delivery / HTTP request
      gateways/<transport>       receive, bind      bytes -> CloudEvent, or a poison delivery with a reason
      edda.inbox                 accept             ONE transaction for a batch: dedupe, store, wake, start; then settle
      edda.engine                claim, replay      lease + fence, then history and due events feed the code
      edda.engine                turn               records, waits, outbox rows, state: one fenced, shared flush
      outbox_relays              relay              take rows -> publish -> confirm each -> ONE transaction

These are the public names; everything else is how it works.
"""

from edda.activity import activity
from edda.app import EddaApp
from edda.channels import ChannelMessage, publish, receive, send_to, subscribe, unsubscribe
from edda.cloudevent import CloudEvent
from edda.context import WorkflowContext
from edda.errors import EddaError, NonDeterminismError
from edda.handle import Handle, WorkflowCancelledError
from edda.hooks import HooksBase, WorkflowHooks
from edda.outbox import enqueue as outbox
from edda.received import ReceivedEvent
from edda.retention import Retention
from edda.retry import ActivityTimeoutError, RetryExhaustedError, RetryPolicy, TerminalError
from edda.saga import compensation, on_failure, register_compensation
from edda.sending import send_event
from edda.transactional import send_event_transactional
from edda.wait_any import Winner, channel, event, timer, wait_any
from edda.waits import EventTimeoutError, sleep, sleep_until, wait_event, wait_timer, wait_until
from edda.workflow import workflow
from edda.wsgi import create_wsgi_app

__version__ = "1.0.0.dev0"

__all__ = [
    "ActivityTimeoutError",
    "ChannelMessage",
    "CloudEvent",
    "EddaApp",
    "EddaError",
    "EventTimeoutError",
    "Handle",
    "HooksBase",
    "NonDeterminismError",
    "ReceivedEvent",
    "Retention",
    "RetryExhaustedError",
    "RetryPolicy",
    "TerminalError",
    "Winner",
    "WorkflowCancelledError",
    "WorkflowContext",
    "WorkflowHooks",
    "activity",
    "channel",
    "compensation",
    "create_wsgi_app",
    "event",
    "on_failure",
    "outbox",
    "publish",
    "receive",
    "register_compensation",
    "send_event",
    "send_event_transactional",
    "send_to",
    "sleep",
    "sleep_until",
    "subscribe",
    "timer",
    "unsubscribe",
    "wait_any",
    "wait_event",
    "wait_timer",
    "wait_until",
    "workflow",
]
