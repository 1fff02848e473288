"""A record as a delivery, and the CloudEvent in it.

Source: CloudEvents Kafka protocol binding 1.0.2: the content type alone chooses the mode; in binary mode attributes are
headers ``ce_<name>`` in UTF-8 (not percent-encoded), ``content-type`` is datacontenttype, and the value is the data.
The record's key is no part of the event.
"""

from __future__ import annotations

from typing import Any

from edda.attributes import shown
from edda.cloudevent import CloudEvent
from gateways.cloudevents import MalformedEventError, from_attributes, from_structured
from gateways.delivery import Delivery

_PREFIX = "ce_"


def delivery_of(record: Any, cluster: str) -> Delivery:
    """A record, as aiokafka hands it out, before anybody has looked into it. Never raises."""
    # A header's value may be null in Kafka.
    headers = tuple((name, value or b"") for name, value in record.headers)
    types = [value for name, value in headers if name.lower() == "content-type"]
    place = f"{cluster}/{record.topic}/{record.partition}"
    return Delivery(
        origin=f"kafka:{place}@{record.offset}",
        topic=record.topic,
        body=record.value,
        headers=headers,
        content_type=types[0].decode("utf-8", "replace") if types else None,
        key=record.key,
        stable_id=f"{place}/{record.offset}",
    )


def read(delivery: Delivery) -> CloudEvent | None:
    """The event; None for a record that does not claim to be one. Raises MalformedEventError if it only claims it."""
    attributes = [(name, value) for name, value in delivery.headers if name.startswith(_PREFIX)]
    types = [value for name, value in delivery.headers if name.lower() == "content-type"]
    media = (delivery.content_type or "").split(";", 1)[0].strip(" \t").lower()
    structured = media.startswith("application/cloudevents")
    if not attributes and not structured:
        return None
    if len(types) > 1:
        raise MalformedEventError("the header 'content-type' is there twice")
    if media.startswith("application/cloudevents-batch"):
        raise MalformedEventError("a record holds one event; there is no batch mode in Kafka")
    if structured:
        return from_structured(delivery.body or b"", media)
    content_type = _text(types[0], "content-type") if types else None
    return from_attributes(_distinct(attributes), content_type, delivery.body)


def _distinct(headers: list[tuple[str, bytes]]) -> dict[str, str]:
    attributes: dict[str, str] = {}
    for header, value in headers:
        name = header.removeprefix(_PREFIX)
        if name in attributes:
            raise MalformedEventError(f"the header {shown(header)} is there twice")
        attributes[name] = _text(value, header)
    if "datacontenttype" in attributes:
        raise MalformedEventError("the header 'ce_datacontenttype' must not be there: content-type says it")
    return attributes


def _text(value: bytes, name: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise MalformedEventError(f"the header {shown(name)} is not UTF-8") from None
