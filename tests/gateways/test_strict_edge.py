"""What becomes a CloudEvent and what does not. The cases of the official JSON vectors are among them, and many more."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edda.cloudevent import CloudEvent
from gateways.cloudevents import MalformedEventError, UnsupportedFormatError, from_http
from tests.gateways.messages import BATCH, MINIMAL, STRUCTURED, Headers, binary, form, structured, without

REQUIRED = ["specversion", "id", "source", "type"]
OPTIONAL = ["time", "subject", "dataschema", "datacontenttype"]


def one(request: tuple[Headers, bytes]) -> CloudEvent:
    [event] = from_http(*request)
    return event


def refusal(request: tuple[Headers, bytes]) -> str:
    with pytest.raises(MalformedEventError) as caught:
        from_http(*request)
    return caught.value.reason


# ---------------------------------------------------------------------------------------------- required


@pytest.mark.parametrize("name", REQUIRED)
def test_a_required_attribute_that_is_missing_is_never_invented(name: str) -> None:
    assert name in refusal(binary(**{name: None}))
    assert name in refusal(structured(without(name)))
    assert name in refusal(structured(form(**{name: None})))
    assert name in refusal(structured([without(name)], BATCH))


@pytest.mark.parametrize("name", REQUIRED)
def test_a_required_attribute_that_is_empty_is_missing(name: str) -> None:
    assert "empty" in refusal(binary(**{name: ""}))
    assert "empty" in refusal(binary(**{name: '""'}))
    assert "empty" in refusal(structured(form(**{name: ""})))


@pytest.mark.parametrize("name", [*REQUIRED, *OPTIONAL])
@pytest.mark.parametrize("value", [25, 1.5, True, {"xyz": "abc"}, ["a"], [[[]]]])
def test_an_attribute_of_another_type_is_refused(name: str, value: Any) -> None:
    assert "must be a string" in refusal(structured(form(**{name: value})))


@pytest.mark.parametrize("version", ["0.9", "1", "1.1", "2.0", " 1.0"])
def test_an_unknown_specversion_is_refused(version: str) -> None:
    assert "specversion" in refusal(structured(form(specversion=version)))


def test_nothing_is_added_to_a_minimal_event() -> None:
    expected = CloudEvent(id="a-1", source="/shop", type="order.created")
    assert one(binary()) == expected
    assert one(structured(MINIMAL)) == expected
    assert expected.time is None
    assert b"time" not in expected.attributes_json()


@pytest.mark.parametrize("name", OPTIONAL)
def test_a_null_optional_attribute_is_absent(name: str) -> None:
    assert one(structured(form(**{name: None}))) == one(structured(MINIMAL))


@pytest.mark.parametrize("name", OPTIONAL)
def test_an_empty_optional_attribute_is_refused(name: str) -> None:
    assert "empty" in refusal(structured(form(**{name: ""})))


# ---------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize(
    "time",
    [
        "lunchtime",
        "2018-04-05",
        "2018-04-05T18:31Z",
        "2018-04-05T18:31:00",
        "2018-04-05T18:31:00X",
        "2018-04-05T18:31:00+05",
        "2018-04-05T18:31:00+25:00",
        "2018-04-05T18:31:00+xx:00",
        "2018-04-05T24:00:00Z",
        "2018-13-05T18:31:00Z",
        "2018-02-30T18:31:00Z",
        "2018-04-05T18:31:00.Z",
        "2018-04-05 18:31:00Z",
        "٢٠١٨-04-05T18:31:00Z",
        "2018-04-05T18:31:00Z\n",
    ],
)
def test_a_time_that_is_none_is_refused(time: str) -> None:
    assert "time" in refusal(structured(form(time=time)))


@pytest.mark.parametrize(
    "time",
    [
        "2018-04-05T17:31:00Z",
        "2018-04-05t17:31:00z",
        "2018-04-05T17:31:00.000000000Z",
        "2018-04-05T17:31:00.123456789123Z",
        "2018-04-05T18:31:00+01:00",
        "2018-04-05T16:31:00-01:00",
        "2016-12-31T23:59:60Z",
        "2024-02-29T00:00:00Z",
    ],
)
def test_a_time_is_carried_as_it_was_written(time: str) -> None:
    assert one(structured(form(time=time))).time == time
    assert one(binary(time=time)).time == time


@pytest.mark.parametrize(
    "source", ["a b", "/shop\n", "été", "https://shop/%zz", "/a%2", "<shop>", "a\\b", "{x}"]
)
def test_a_source_that_is_no_uri_reference_is_refused(source: str) -> None:
    assert "source" in refusal(structured(form(source=source)))


@pytest.mark.parametrize(
    "source", ["#fragment", "//authority/path", "urn:a:b", "mailto:x@y", "?q=1", "/a%20b", "x"]
)
def test_a_source_may_be_any_uri_reference(source: str) -> None:
    assert one(structured(form(source=source))).source == source


@pytest.mark.parametrize("content_type", ["xyz", "a/b/c", "text/plain, text/html", "/json", "text/", "a b/c"])
def test_a_datacontenttype_that_is_no_media_type_is_refused(content_type: str) -> None:
    assert "media type" in refusal(structured(form(datacontenttype=content_type)))
    assert "media type" in refusal(binary(b"x", content_type))


@pytest.mark.parametrize(
    "content_type", ["text/plain\r\nx-evil: 1", "text/plain; a=\x00", "text/plain; a=\ud800"]
)
def test_a_content_type_can_never_smuggle_a_header(content_type: str) -> None:
    assert "datacontenttype" in refusal(structured(form(datacontenttype=content_type)))


def test_a_type_too_long_to_be_indexed_is_refused() -> None:
    assert one(structured(form(type="t" * 255))).type == "t" * 255
    assert "256 bytes" in refusal(structured(form(type="t" * 256)))
    assert "256 bytes" in refusal(structured(form(type="é" * 128)))


@pytest.mark.parametrize("name", ["id", "subject", "type", "myext"])
@pytest.mark.parametrize(
    "value", ["a\x00b", "a\nb", "\x7f", "\x85", "a\ud800", "\udfff", "￾", "\ufdd0", "\U0010ffff"]
)
def test_control_characters_surrogates_and_noncharacters_are_refused(name: str, value: str) -> None:
    assert name in refusal(structured(form(**{name: value})))


# ---------------------------------------------------------------------------------------------- extensions


@pytest.mark.parametrize(
    "name", ["MyExtension", "my.extension", "my-ext", "my_ext", "", "é", "a b", "data_base65"]
)
def test_an_extension_with_a_name_that_is_none_is_refused(name: str) -> None:
    assert "name" in refusal(structured(form(**{name: "bad"})))


@pytest.mark.parametrize("value", [1.5, 2**31, -(2**31) - 1, {"a": 1}, ["a"]])
def test_an_extension_of_a_type_that_is_none_is_refused(value: Any) -> None:
    assert "myext" in refusal(structured(form(myext=value)))


def test_extensions_keep_their_types() -> None:
    extensions = {
        "extinteger": -(2**31),
        "extboolean": True,
        "extstring": "text",
        "exturi": "https://shop",
        "exttimestamp": "2023-03-31T15:12:00Z",
        "extbinary": "TWE=",
        "extempty": "",
    }
    event = one(structured(form(**extensions)))
    assert event.extensions == extensions
    assert type(event.extensions["extboolean"]) is bool


@pytest.mark.parametrize("name", ["data", "data_base64", "datacontenttype"])
def test_a_reserved_name_in_a_header_never_overwrites_ours(name: str) -> None:
    assert name in refusal(binary(b"{}", "application/json", **{name: "evil"}))


@pytest.mark.parametrize("name", [*REQUIRED, "time", "subject", "dataschema"])
def test_an_attribute_in_another_case_is_the_same_header_and_refused_twice(name: str) -> None:
    headers, body = binary(**{name: "x"})
    assert "twice" in refusal(([*headers, (b"CE-" + name.upper().encode(), b"y")], body))


def test_headers_are_found_in_any_case() -> None:
    headers, body = binary()
    assert one(([(name.upper(), value) for name, value in headers], body)).id == "a-1"


# ---------------------------------------------------------------------------------------------- header values


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b"Euro%20%E2%82%AC%20%F0%9F%98%80", "Euro € 😀"),
        (b"%e2%82%ac", "€"),
        (b'"a \\"b\\" \\\\"', 'a "b" \\'),
        (b'"Euro \\"x\\" %E2%82%AC"', 'Euro "x" €'),
        (b"%2541", "%41"),
        (b"%41%42", "AB"),
        ("Euro €".encode(), "Euro €"),
        (b"  padded\t", "padded"),
        (b"%20kept%20", " kept "),
        (b"50%", "50%"),
        (b"%zz", "%zz"),
    ],
)
def test_a_header_value_is_unquoted_then_percent_decoded_once(raw: bytes, value: str) -> None:
    assert one(binary(subject=raw)).subject == value


@pytest.mark.parametrize("raw", [b"%C0%A0", b"%ff", b"\xff", b"%ED%A0%80", b"a%E2%82"])
def test_a_header_that_is_not_utf8_is_refused(raw: bytes) -> None:
    assert "UTF-8" in refusal(binary(subject=raw))


@pytest.mark.parametrize("raw", [b"%00", b"a%0Ab", b"%0D%0Ax-evil:%201", b"%EF%BF%BF"])
def test_a_control_character_cannot_be_smuggled_by_percent_encoding(raw: bytes) -> None:
    assert "subject" in refusal(binary(subject=raw))


def test_a_second_content_type_is_refused() -> None:
    headers, body = binary(b"{}", "application/json")
    assert "twice" in refusal(([*headers, (b"Content-Type", b"text/plain")], body))


# ---------------------------------------------------------------------------------------------- mode


def test_the_mode_is_chosen_by_the_content_type_alone() -> None:
    inside = form(id="inside")
    headers, _ = binary(id="outside")
    body = json.dumps(inside).encode()
    assert one(([*headers, (b"content-type", STRUCTURED.encode())], body)).id == "inside"
    assert one(([*headers, (b"content-type", b"application/json")], body)).id == "outside"


@pytest.mark.parametrize(
    "content_type",
    [
        STRUCTURED,
        "Application/CloudEvents+JSON",
        "application/cloudevents+json; charset=utf-8",
        "application/cloudevents+json ;charset=UTF-8",
        " application/cloudevents+json",
    ],
)
def test_structured_mode_is_found_in_any_spelling(content_type: str) -> None:
    assert one(structured(MINIMAL, content_type)).id == "a-1"


def test_a_batch_is_not_taken_for_one_event() -> None:
    events = from_http(*structured([form(id="a"), form(id="b")], "Application/CloudEvents-Batch+JSON; x=y"))
    assert [event.id for event in events] == ["a", "b"]
    assert from_http(*structured([], BATCH)) == []


@pytest.mark.parametrize(
    "content_type",
    [
        "application/cloudevents",
        "application/cloudevents+avro",
        "application/cloudevents+protobuf",
        "application/cloudevents-batch",
        "application/cloudevents-batch+xml",
    ],
)
def test_another_event_format_is_unsupported_and_not_read_as_binary(content_type: str) -> None:
    headers, body = binary(b"x", content_type)
    with pytest.raises(UnsupportedFormatError):
        from_http(headers, body)


def test_a_json_body_without_ce_headers_is_no_event() -> None:
    assert "specversion" in refusal(([(b"content-type", b"application/json")], json.dumps(MINIMAL).encode()))


# ---------------------------------------------------------------------------------------------- batch


@pytest.mark.parametrize(
    "bad",
    [
        without("id"),
        "not an object",
        [],
        None,
        form(specversion="0.9"),
        form(specversion="0.3"),
        form(time="lunchtime"),
        form(data=1, data_base64="YQ=="),
    ],
)
def test_one_bad_element_refuses_the_whole_batch(bad: Any) -> None:
    good = [form(id=f"good-{number}") for number in range(3)]
    for at in range(4):
        refusal(structured([*good[:at], bad, *good[at:]], BATCH))


def test_a_refusal_says_which_element() -> None:
    assert refusal(structured([form(), without("id")], BATCH)).startswith("element 1 of the batch: ")


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[", b"[{}", b"[]]", b"[] x", b'[{"a":1},]', b"null", b'"a"', b"[1,2]"]
)
def test_a_batch_that_is_no_array_of_objects_is_refused(body: bytes) -> None:
    refusal(structured(body, BATCH))


def test_two_copies_in_one_batch_are_for_the_inbox_to_judge() -> None:
    assert len(from_http(*structured([MINIMAL, MINIMAL], BATCH))) == 2


# ---------------------------------------------------------------------------------------------- JSON


def spliced(member: bytes) -> tuple[Headers, bytes]:
    return structured(json.dumps(MINIMAL).encode()[:-1] + b"," + member + b"}")


@pytest.mark.parametrize(
    "member",
    [
        b'"id":"b"',
        b'"\\u0069d":"b"',
        b'"data":1,"data":2',
        b'"data":{"a":1,"a":1}',
        b'"data":[{"x":{"a":1,"\\u0061":2}}]',
        b'"myext":"a","myext":"a"',
    ],
)
def test_a_name_twice_in_one_object_is_refused(member: bytes) -> None:
    assert "twice" in refusal(spliced(member))


@pytest.mark.parametrize(
    "data", [b"NaN", b"Infinity", b"-Infinity", b"[NaN]", b"1e999", b'{"a":[-1e400]}', b"9" * 5000]
)
def test_a_number_that_is_none_is_refused(data: bytes) -> None:
    refusal(spliced(b'"data":' + data))


def test_a_long_integer_with_a_fraction_is_refused_when_no_double_holds_it() -> None:
    refusal(spliced(b'"data":' + b"9" * 400 + b".5"))


@pytest.mark.parametrize("data", [b'"\\ud800"', b'{"a":"\\udc00x"}', b'{"\\ud83d":1}', b'["\\ud83d\\ud83d"]'])
def test_a_lone_surrogate_in_the_data_is_refused(data: bytes) -> None:
    refusal(spliced(b'"data":' + data))
    refusal(spliced(b'"datacontenttype":"text/plain","data":' + data))


def test_paired_surrogates_are_one_character() -> None:
    assert one(spliced(b'"data":"\\ud83d\\ude00"')).json() == "😀"


@pytest.mark.parametrize("depth", [250, 5_000, 400_000])
@pytest.mark.parametrize("where", ["data", "id", "myext"])
def test_huge_nesting_is_refused_and_does_not_crash(depth: int, where: str) -> None:
    refusal(spliced(b'"%s":' % f"x{where}".encode()[1:] + b"[" * depth + b"]" * depth))
    refusal(structured(b"[" * depth, BATCH))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"a"',
        b"{}x",
        b'{"specversion":"1.0",}',
        b"{'id':1}",
        b'{id:"a"}',
        b'{"id" "a"}',
        b'{"id":"a" "b":"c"}',
        b'{"id":}',
        b'{"id":"a\n"}',
        b'\xef\xbb\xbf{"id":"a"}',
        b'{"id":"\xff"}',
        b"\x00",
        json.dumps(MINIMAL).encode("utf-16"),
    ],
)
def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    refusal(structured(body))


def test_both_kinds_of_data_exclude_each_other() -> None:
    assert "exclude" in refusal(structured(form(data="text", data_base64="eyAieHl6IjogMTIzIH0=")))
    assert one(structured(form(data=None, data_base64="YQ=="))).data == b"a"
    assert one(structured(form(data="a", data_base64=None))).data == b'"a"'


@pytest.mark.parametrize("encoded", ["@@@", "YQ", "YQ==\n", "Y Q==", "YQ==YQ==", "é", 1, {}, ["YQ=="], True])
def test_bad_base64_is_refused(encoded: Any) -> None:
    assert "base64" in refusal(structured(form(data_base64=encoded)))


@pytest.mark.parametrize("data", [1, {"a": 1}, [], True])
def test_data_that_is_no_string_needs_a_json_type(data: Any) -> None:
    assert "string" in refusal(structured(form(data=data, datacontenttype="text/plain")))
    assert one(structured(form(data=data, datacontenttype="application/vnd.a_b+json"))).json() == data


# ---------------------------------------------------------------------------------------------- data


@pytest.mark.parametrize(
    "text",
    [
        b"12345678901234567890.123456789012345678901234567890",
        b"1.10",
        b"1E+2",
        b"-0.0",
        b'{ "b" : 1,\n "a":\t[ ] }',
        b'"\\u00e9\\/"',
        b"null",
        b'""',
        b"98765432109876543210987654321",
    ],
)
def test_json_data_is_carried_as_it_was_written(text: bytes) -> None:
    assert one(spliced(b'"data" : ' + text)).data == text
    assert one(spliced(b'"data":' + text + b" ")).data == text


def test_text_data_is_its_characters_in_utf8() -> None:
    assert one(structured(form(data="Grüße", datacontenttype="text/plain"))).data == "Grüße".encode()
    assert one(structured(form(data="", datacontenttype="text/plain"))).data == b""


def test_no_data_is_not_empty_data() -> None:
    assert one(structured(MINIMAL)).data is None
    assert one(binary()).data is None
    assert one(binary(b"", "application/json")).data is None  # no JSON text is empty
    assert one(binary(b"", "text/plain")).data == b""


def test_a_binary_body_is_carried_byte_by_byte() -> None:
    body = bytes(range(256))
    assert one(binary(body, "application/octet-stream")).data == body
    assert one(binary(b'{"a": }', "application/json")).data == b'{"a": }'


# ---------------------------------------------------------------------------------------------- version 0.3


def test_version_0_3_has_its_own_names() -> None:
    event = one(
        structured(form(specversion="0.3", schemaurl="/s", datacontentencoding="Base64", data="AP8="))
    )
    assert (event.dataschema, event.data, event.extensions) == ("/s", b"\x00\xff", {})
    assert one(structured(form(specversion="0.3", data={"a": 1}))).json() == {"a": 1}


@pytest.mark.parametrize(
    "changes", [{"data_base64": "YQ=="}, {"datacontentencoding": "gzip", "data": "x"}, {"dataschema": "/s"}]
)
def test_version_0_3_refuses_names_of_1_0(changes: dict[str, Any]) -> None:
    refusal(structured(form(specversion="0.3", **changes)))


# ---------------------------------------------------------------------------------------------- size


def test_64_kib_on_the_wire_are_taken() -> None:
    body = b'"' + b"x" * 65_534 + b'"'
    assert one(binary(body, "application/json")).data == body
    assert len(body) == 65_536


def test_a_message_never_repeats_a_long_value() -> None:
    assert len(refusal(structured(form(source="<" * 60_000)))) < 300
    assert len(refusal(structured(form(**{"X" * 60_000: "a"})))) < 300
    assert len(refusal(spliced(b'"' + b"x" * 60_000 + b'":1,"' + b"x" * 60_000 + b'":1'))) < 300
