"""A consumer with handlers of a user: the shell, and what their calls share."""

from __future__ import annotations

from collections.abc import Callable

from ...ports import Clock, Events
from ...runtime.background import BackgroundThreads
from ...shells.consumer import ConsumerShell, Host, ReopenedTransport
from ...shells.ledger.files import LedgerFiles
from ...shells.tables.ledger import SqlLedger
from ..effects.desk import EffectAnswers
from ..handling.call import Consumer
from ..handling.carry import Carry

Ledger = LedgerFiles | SqlLedger


class ConsumerActor(ConsumerShell):
    """One partition of `consumer`."""

    def __init__(
        self,
        consumer: Consumer,
        partition: int,
        *,
        endpoint: str,
        transport: ReopenedTransport,
        clock: Clock,
        events: Events,
        entropy: Callable[[], bytes],
        ledger: Ledger,
        host: Host[ConsumerActor],
        label: str,
        process: bytes = b"",
        outlived: int = 0,
        first_request: int = 1,
        background: BackgroundThreads | None = None,
    ) -> None:
        """`background` is closed with this actor."""
        super().__init__(
            (consumer.group, consumer.topic, partition),
            endpoint=endpoint,
            transport=transport,
            clock=clock,
            events=events,
            entropy=entropy,
            ledger=ledger,
            host=host,
            label=label,
            retries=consumer.retries,
            crash_retries=consumer.crash_retries,
            park_limit=consumer.park_limit,
            process=process,
            outlived=outlived,
            first_request=first_request,
            background=background,
        )
        self.core.connection.wishes = consumer.topics
        self._files = background
        self.consumer = consumer
        self.partition = partition
        # The connection that handlers write to; None: they have none.
        self.sink = ledger.session
        # What one call of the handlers leaves for the next; of the thread that carries them out.
        self.carry = Carry()
        # Answers for handlers that wait in tx.effect. Any thread may take them.
        self.effect_answers = EffectAnswers()

    def close(self) -> None:
        """Handlers that wait in tx.effect learn that no answer will come."""
        super().close()
        if self._files is not None:
            self._files.close()
        self.effect_answers.end()
