"""`Harness`: a user's handlers in a test, with a real broker and real ledgers in memory.

    harness = Harness(app)
    harness.send("orders", {"cents": 250}, id="o-1", key="alice")
    harness.drain()
    assert harness.state("billing") == {"alice": 250}
    assert [m.value for m in harness.sent("invoices")] == [{"order": "o-1", "cents": 250}]

Broker, producer and consumers are the cores of production on an in-memory disk; only sockets,
threads and waiting are left out, so a test takes milliseconds and does the same every time.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ...codec.values import decode_value
from ...errors import OnceMQError
from ..app import App
from ..handling.state import shown_state
from ..messages.message import Message, messages_in
from ..messages.payloads import decoder_with
from ..producing.acks import Ack
from .actors import create_topic, stored_batches
from .checks import check_kinds, complaints
from .crash_steps import (
    STEPS,
)
from .effects import HarnessEffects
from .outside_effects import OutsideEffect
from .system import LocalSystem


class Harness:
    """Runs the consumers of an App in memory. Belongs to one thread."""

    def __init__(
        self, app: App, *, partitions: Mapping[str, int] | None = None, audit: bool = True
    ) -> None:
        """Start a broker and make the topics in `partitions`; others get one partition.

        With `audit` it is noted what handlers do outside of `tx` (outside_effects.py).
        """
        self._system = LocalSystem(app, audit=audit)
        self._serializer = app.serializer
        #: Effects of unknown outcome, and the test's word about them.
        self.effects: HarnessEffects = HarnessEffects(self._system)
        for topic, count in (partitions or {}).items():
            create_topic(self._system.network, self._system.loop, topic, count)

    # --- what a test calls -----------------------------------------------------------------------

    def send(
        self,
        topic: str,
        value: Any,
        *,
        id: str | bytes | None = None,  # noqa: A002 - the name that users know
        key: str | bytes | None = None,
        headers: Mapping[str, bytes] | None = None,
    ) -> Ack:
        """Send one message and return its acknowledgement. No handler runs before `drain`.

        Raises what a producer's send and its result raise: ValueNotEncodable, IdConflict, ...
        """
        producer = self._system.named if id is None else self._system.anonymous
        return producer.send(
            self._system.loop,
            topic,
            value,
            id=id,
            key=key,
            headers=headers,
            serializer=self._serializer,
        )

    def drain(self) -> None:
        """Run the handlers until every message is handled, committed and its outputs are stored.

        Dies and starts again wherever `crash_at` says. A message that fails at every attempt is
        parked, as in production: look at `sent("TOPIC.dead")`. For a consumer with `park=False` it
        raises HandlerFailed, with the handler's own error as cause; the offset has not moved, and
        the next `drain` tries again. While an effect of unknown outcome holds a partition it raises
        EffectUnknown, after all others are done.
        """
        self._system.drain()

    def crash_at(self, *steps: str) -> None:
        """Let everything die when a consumer next comes to one of `steps`, without any: to each.

        That is the next `drain` or `assert_exactly_once`; each consumer dies once at each step, is
        started again and goes on. The steps are, in order: before_handler,
        after_handler_before_commit, after_append_before_sync, after_sync_before_outputs,
        after_outputs_before_ack, after_ack. Two are met only when named: after_intent_before_call and
        after_call_before_record, of effects. Raises ValueError for other names.
        """
        self._system.steps.ask(steps or STEPS)

    @property
    def crashes(self) -> list[tuple[str, str, str]]:
        """Where everything has died because `crash_at` said so: (group, topic, step), in order."""
        return list(self._system.steps.met)

    @property
    def outside_effects(self) -> list[OutsideEffect]:
        """What handlers did outside of `tx` so far: files, connections, programs."""
        return [] if self._system.audit is None else list(self._system.audit.found)

    def assert_exactly_once(self, *, allow: Collection[str] = ()) -> None:
        """Drain, dying at every step at which a consumer has not died yet; then look at it all.

        Send first and call this instead of `drain`; assertions of yours come after it: they see an
        effect outside of `tx` twice. Raises AssertionError if a message is not processed, an output
        not stored exactly once, or a handler did something outside of `tx` of a kind ("file",
        "connection", "program") that is not in `allow`; and what `drain` raises.
        """
        check_kinds(allow)
        self._system.steps.ask_for_rest()
        self.drain()
        found = list(
            complaints(self._system.broker, self._system.actors, self.outside_effects, allow)
        )
        if found:
            raise AssertionError("\n".join(["not exactly once:", *found]))

    def close(self) -> None:
        """End what handlers have left running, and let go of the databases of sinks."""
        self._system.close()

    def __enter__(self) -> Harness:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def state(self, group: str, topic: str | None = None) -> dict[Any, Any]:
        """Return what the group has in tx.state, of one topic or of all that it consumes.

        With state_by="key" it is one dict for each message key; the key is None for messages
        without one.

        Raises OnceMQError if two partitions hold the same key.
        """
        merged: dict[Any, Any] = {}
        for (of_group, of_topic, partition), actor in self._system.actors.items():
            if of_group != group or topic not in {None, of_topic}:
                continue
            for key, value in shown_state(actor.core.ledger.state).items():
                if key in merged:
                    raise OnceMQError(
                        f"{key!r} is in the state of several partitions; one is "
                        f"{of_topic}/{partition}",
                        hint="pass one topic, or give the messages keys",
                    )
                merged[key] = value
        return merged

    def sent(self, topic: str) -> list[Message]:
        """Return all messages of a topic, in order of partition and offset."""
        known = self._system.broker.core.state.topics.by_name.get(topic)
        if known is None:
            return []
        serializer = self._serializer
        decode = decode_value if serializer is None else decoder_with(serializer, None)
        found: dict[int, list[Message]] = {}
        for stored in stored_batches(self._system.broker, known.number):
            found.setdefault(stored.partition, []).extend(messages_in(topic, stored, decode))
        return [message for partition in sorted(found) for message in found[partition]]

    def crash(self) -> None:
        """End broker, producers and consumers as a power cut would, and start them again.

        Consumers come back at the next `drain` or `state`. Nothing acknowledged is lost.
        """
        self._system.crash()
