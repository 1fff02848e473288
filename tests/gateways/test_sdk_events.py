"""Events of the ``cloudevents`` SDK and plain mappings, as ``handle_cloudevent`` takes them."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from cloudevents.core.v1.event import CloudEvent as SdkEvent
from cloudevents.v1.http import CloudEvent as OldSdkEvent

from edda.cloudevent import CloudEvent, InvalidEventError
from edda.sdk_events import cloudevent_of

ATTRIBUTES = {"id": "a-1", "source": "/shop", "type": "order.created", "specversion": "1.0"}


def test_an_event_of_ours_stays_as_it_is() -> None:
    event = CloudEvent("a-1", "/shop", "order.created")
    assert cloudevent_of(event) is event


MOMENT = dt.datetime(2024, 1, 2, 3, 4, 5, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("make", "time"), [(SdkEvent, MOMENT), (OldSdkEvent, MOMENT.isoformat())], ids=["2.x", "1.x"]
)
def test_an_event_of_the_sdk_keeps_its_attributes_and_data(make: Any, time: Any) -> None:
    attributes = {**ATTRIBUTES, "time": time, "subject": "s", "myext": "x"}
    event = cloudevent_of(make({**attributes, "datacontenttype": "application/json"}, {"n": 1}))
    assert (event.id, event.source, event.type) == ("a-1", "/shop", "order.created")
    assert (event.subject, event.extensions) == ("s", {"myext": "x"})
    assert dt.datetime.fromisoformat(event.time or "") == MOMENT
    assert (event.json(), event.datacontenttype) == ({"n": 1}, "application/json")


def test_a_mapping_of_attributes_and_data_is_an_event() -> None:
    event = cloudevent_of({**ATTRIBUTES, "data": {"n": 1}, "subject": None, "myext": None})
    assert event == CloudEvent("a-1", "/shop", "order.created", b'{"n":1}', "application/json")


def test_bytes_stay_bytes_and_an_absent_content_type_absent() -> None:
    assert cloudevent_of({**ATTRIBUTES, "data": b'{"n": 1}'}).data == b'{"n": 1}'
    assert cloudevent_of({**ATTRIBUTES, "data": b"{}"}).datacontenttype is None
    text = cloudevent_of({**ATTRIBUTES, "data": "Grüße", "datacontenttype": "text/plain"})
    assert text.data == "Grüße".encode()


@pytest.mark.parametrize("name", ["id", "source", "type"])
def test_a_required_attribute_is_not_invented(name: str) -> None:
    with pytest.raises(InvalidEventError, match=name):
        cloudevent_of({**ATTRIBUTES, name: None})


@pytest.mark.parametrize("event", [None, 1, "a", [], object()])
def test_something_else_is_a_type_error(event: Any) -> None:
    with pytest.raises(TypeError, match=type(event).__name__):
        cloudevent_of(event)
