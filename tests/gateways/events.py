"""Any CloudEvent at all, for properties."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from edda.cloudevent import CloudEvent

_URI = "abcXYZ019-._~:/?#[]@!$&'()*+,;="

#: What CloudEvents allows in a string: no control characters, surrogates or noncharacters.
texts = st.text(
    st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="\ufffe\uffff").filter(
        lambda char: ord(char) & 0xFFFE != 0xFFFE and not 0xFDD0 <= ord(char) <= 0xFDEF
    ),
    min_size=1,
    max_size=40,
)
uris = st.lists(st.one_of(st.sampled_from(_URI), st.just("%2F")), min_size=1, max_size=30).map("".join)
times = st.one_of(
    st.datetimes().map(lambda moment: moment.isoformat(timespec="seconds") + "Z"),
    st.sampled_from(["2018-04-05T17:31:00.123456789+01:00", "2016-12-31t23:59:60z"]),
)
media_types = st.sampled_from(
    ["application/json", "Application/Problem+JSON ; charset=utf-8", "text/plain", "application/octet-stream"]
)
names = st.from_regex(r"[a-z0-9]{1,20}", fullmatch=True).filter(
    lambda name: (
        name
        not in {
            "id",
            "source",
            "type",
            "specversion",
            "time",
            "subject",
            "dataschema",
            "datacontenttype",
            "data",
        }
    )
)
values = st.one_of(st.just(""), texts, st.booleans(), st.integers(-(2**31), 2**31 - 1))

json_values: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(st.characters(exclude_categories=["Cs"])),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner)
    ),
    max_leaves=12,
)
json_texts = st.one_of(
    json_values.map(lambda value: json.dumps(value, ensure_ascii=False).encode()),
    json_values.map(lambda value: json.dumps(value, indent=1).encode()),
    st.sampled_from(
        [b"12345678901234567890.12345678901234567890", b"1.10", b'{"a":1,"a":2}', b"1e999", b"NaN"]
    ),
)


@st.composite
def cloud_events(draw: st.DrawFn) -> CloudEvent:
    """Any event: JSON, text or bytes as data, or none."""
    content_type = draw(st.one_of(st.none(), media_types))
    return CloudEvent(
        id=draw(texts),
        source=draw(uris),
        type=draw(texts),
        data=draw(st.one_of(st.none(), st.binary(max_size=60), json_texts)),
        datacontenttype=content_type,
        dataschema=draw(st.one_of(st.none(), uris)),
        subject=draw(st.one_of(st.none(), texts)),
        time=draw(st.one_of(st.none(), times)),
        specversion=draw(st.sampled_from(["1.0", "1.0", "1.0", "0.3"])),
        extensions=draw(
            st.dictionaries(
                names.filter(lambda name: name not in {"schemaurl", "datacontentencoding"}),
                values,
                max_size=4,
            )
        ),
    )
