"""What completion shows of the classes that users hold: their documented names and no others."""

from __future__ import annotations

import pytest

import oncemq
from oncemq import App, Harness, OnceMQError, errors

FACES = {
    "Ack": "count duplicate durability index offset partition topic",
    "AckMany": "appended count duplicates index",
    "App": "consumer consumers producer topic",
    "ExactlyOnceConsumer": "close poll_and_process",
    "ExactlyOnceQueue": "send",
    "Harness": "assert_exactly_once close crash crash_at crashes drain outside_effects send sent state",
    "Message": "appended_at_ms attempt created_at_ms headers id key offset partition topic value",
    "Pending": "add_done_callback done result",
    "PendingMany": "acks add_done_callback done result",
    "Producer": "close flush name send send_many",
    "Serializer": "decode encode",
    "Tx": "connection effect effect_key key key_of send sql state",
}


def shown(face: object) -> str:
    return " ".join(name for name in dir(face) if not name.startswith("_"))


@pytest.mark.parametrize("name", FACES)
def test_only_documented_names_show(name: str) -> None:
    """A name that is added, renamed or left without an underscore is a change of the interface."""
    assert shown(getattr(oncemq, name)) == FACES[name]


def test_instances_show_no_more_than_their_fields() -> None:
    """What `__init__` sets shows too."""
    app = App()
    assert shown(app) == "broker consumer consumers producer serializer topic"
    with Harness(app) as harness:
        assert shown(harness) == FACES["Harness"].replace("drain", "drain effects")
        assert shown(harness.effects) == "done held retry"


def test_every_error_and_every_face_is_a_public_name() -> None:
    """An `except` clause can name each error that a call raises."""
    kinds = [one for one in vars(errors).values() if isinstance(one, type)]
    raised = {one.__name__ for one in kinds if issubclass(one, OnceMQError)}
    assert raised | set(FACES) | {"outbox"} == set(oncemq.__all__)
    assert all(hasattr(oncemq, name) for name in oncemq.__all__)
    assert sorted(oncemq.__all__, key=str.lower) == sorted(set(oncemq.__all__), key=str.lower)
