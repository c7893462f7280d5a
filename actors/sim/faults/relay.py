"""What happens to relays and to the databases that they read."""

from __future__ import annotations

from ..processes.outbox import AFTER, BEFORE
from ..processes.relay import SimRelay
from .base import Fault


class OutboxAway(Fault):
    """The database of an outbox stops for a while, or breaks the connection at a commit."""

    name = "outbox away"

    def strike(self) -> bool:
        """Stop the outbox, or leave the outcome of its next commit unknown."""
        outbox = self.people.outbox
        how = self.rng.choice(("stopped", BEFORE, AFTER, AFTER))
        if how != "stopped":
            outbox.next_settle = how
        else:
            outbox.up = False
            self.world.after(self.rng.choice((50, 1_000, 6_000)), self.heal)
        return True

    def heal(self) -> None:
        self.people.outbox.up = True
        self.people.outbox.next_settle = ""


class RelayStuck(Fault):
    """A relay dies or stands still between two of its steps."""

    name = "relay stuck"

    def strike(self) -> bool:
        """The relay gets stuck at the next place that it visits."""
        relays = [one for one in self.people.roles if isinstance(one, SimRelay) and one.alive]
        if relays:
            role = self.rng.choice(relays)
            role.interlude = lambda place: self._stick(role, place)
        return False

    def _stick(self, role: SimRelay, place: str) -> None:
        self.fired()
        self.world.trace.add(role.name, "stuck", {"at": place})
        if self.rng.random() < 0.6:
            role.die()
        role.freeze(self.rng.choice((100, 2_000, 12_000)))
