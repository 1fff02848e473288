"""What can never work is refused at once, with a setting that does."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from edda.errors import ConfigurationError, MissingExtraError
from edda.inbox.accept import Inbox
from edda.storage.contract import Storage
from gateways.kafka import KafkaGateway


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"bootstrap_servers": []}, "host:port"),
        ({"bootstrap_servers": "kafka:9092,"}, "host:port"),
        ({"bootstrap_servers": "https://u:s3cret@kafka:9092"}, "host:port"),
        ({"topics": "orders"}, "list of names"),
        ({"topics": []}, "list of names"),
        ({"topics": [""]}, "list of names"),
        ({"topics": ["x" * 250]}, "249"),
        ({"group_id": ""}, "group_id"),
        ({"cluster": ""}, "cluster"),
        ({"start": "now"}, "'earliest' nor 'latest'"),
        ({"batch": 501}, "1 to 500"),
        ({"max_bytes": 1_000}, "65536"),
        ({"session_timeout": 0.5}, "at least 1"),
        ({"stall_after": 0}, "above 0"),
        ({"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "PLANE"}, "SCRAM-SHA-512"),
        (
            {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "OAUTHBEARER"},
            "sasl_oauth_token_provider",
        ),
        ({"sasl_plain_password": "s3cret"}, "no effect"),
        ({"auto_offset_reset": "latest"}, "unknown settings"),
    ],
)
def test_configuration_that_cannot_work_is_refused_with_one_that_does(settings: Any, told: str) -> None:
    right: dict[str, Any] = {"bootstrap_servers": "kafka:9092", "topics": ["orders"], "group_id": "shop"}
    with pytest.raises(ConfigurationError, match=told) as refused:
        KafkaGateway(**right | settings)
    assert "s3cret" not in str(refused.value)


def test_addresses_of_every_form_are_taken() -> None:
    for servers in ("kafka:9092", "a:1, b:2", ["a:1", "[::1]:9092"]):
        assert repr(KafkaGateway(servers, ["orders"], "shop", name="in")) == "<KafkaGateway in>"


async def test_missing_extra_is_told_at_start(lite: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiokafka", None)
    with pytest.raises(MissingExtraError, match="the extra 'kafka'"):
        await KafkaGateway("kafka:9092", ["orders"], "shop").start(Inbox(lite))
