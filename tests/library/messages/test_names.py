"""Members of an enum of texts as names, ids and keys: they are the text that they hold."""

from __future__ import annotations

import enum

from oncemq import App, Harness


class Name(str, enum.Enum):  # noqa: UP042 - the older form, whose members print another text
    TOPIC = "paint"
    GROUP = "painters"
    OUT = "walls"
    ID = "red-1"
    KEY = "red"
    EFFECT = "mix"


def test_an_enum_may_name_topics_groups_ids_keys_and_effects():
    """Ids, file names and idempotency keys are made of the text, never of the member's name."""
    app = App()
    keys = []

    @app.consumer(Name.TOPIC, group=Name.GROUP)
    def paint(message, tx):
        tx.effect(Name.EFFECT, lambda: None)
        keys.extend((message.id, message.key, tx.key, tx.effect_key(Name.EFFECT)))
        tx.send(Name.OUT, Name.KEY, key=Name.KEY)

    harness = Harness(app)
    harness.send(Name.TOPIC, Name.KEY, id=Name.ID, key=Name.KEY)
    harness.drain()
    assert keys == ["red-1", "red", "painters@paint:s:red-1", "painters@paint:s:red-1:mix"]
    (sent,) = harness.sent("walls")
    assert (sent.topic, sent.key, sent.value) == ("walls", "red", "red")
    assert sent.id == "walls/@painters/paint/0:0:0"
    assert [(type(c.topic), type(c.group)) for c in app.consumers] == [(str, str)]
