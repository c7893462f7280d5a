"""What processes, faults and databases have of the world: time, wires, disks, promises, other roles.

Theory of operation. There is one `Environment`, the `World` of world.py. It adds who lives there and
the loop that gives them turns, and does what is abstract here. This file knows none of them, so each
can be read with this file alone; a process is met as a `Role`.

Chance comes from the seed only, in a stream for each part. Timers fall due between two turns.
"""

from __future__ import annotations

import heapq
import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from ..limits import LIMITS, Limits
from ..ports import Frames
from ..records import GroupGranted
from .clock import SimClock
from .disk.cuts import CutPolicy
from .disk.disk import SimDisk
from .network import Endpoint, Envelope, Faults, SimNetwork
from .oracles.ledger import LedgerOracle
from .oracles.log import CREATED_AHEAD_MS, BrokerOracle
from .plan import Plan
from .trace import Trace

MAIN_ADDRESS = b"broker"
SMALL_TABLE_IDS = 8


class Host:
    """A machine: one disk, and the processes on it."""

    def __init__(self, name: str, disk: SimDisk) -> None:
        self.name = name
        self.disk = disk
        self.boots = 1


class Role(Protocol):
    """Who lives in the world, as others see it (processes/role.py)."""

    name: str
    host: Host
    incarnation: int
    frozen_until_ms: int
    wanted: bool  # whether it is started again when it ends
    restart_due: bool
    error: BaseException | None  # how the last process ended

    @property
    def alive(self) -> bool:
        """Whether there is a process."""

    def start(self) -> None:
        """Start a process; nothing happens if there is one."""

    def gone(self) -> None:
        """Take the process out of the world."""

    def interrupt(self, calls: int, action: Callable[[str, str], None]) -> None:
        """Do `action(kind, path)` at the disk call `calls` from now, inside of it."""


class SimTransport:
    """The socket of a process: a `ClientTransport`, and the `Transport` of a broker."""

    def __init__(self, world: Environment, endpoint: Endpoint) -> None:
        self._world = world
        self.endpoint = endpoint

    def poll(self, timeout_ms: int) -> list[Envelope]:
        return self.endpoint.poll(timeout_ms)

    def send(self, peer: bytes, frames: Frames) -> bool:
        for frame in frames:
            self._world.trace.sent(bytes(frame))
        return self.endpoint.send(peer, frames)

    def wake(self) -> None:
        """No process waits in `poll`."""

    def reopen(self, address: bytes | None = None) -> None:
        """The routing id is fresh."""
        self.endpoint.close()
        self.endpoint = self._world.connect_endpoint(address)

    def close(self) -> None:
        self.endpoint.close()


class Environment(ABC):
    """The world around a process."""

    def __init__(self, plan: Plan, *, trace: bool) -> None:
        self.plan = plan
        # What every process gets, from its start to the end of the run.
        self.limits: Limits = replace(
            LIMITS,
            solitary_messages_max=plan.solitary_max,
            created_ahead_ms_max=CREATED_AHEAD_MS,
            offset_index_step_bytes=plan.index_step_bytes,
            keep_bytes_min=plan.keep_bytes_min,
            # So that runs of ids are made and merged in every world.
            id_table_ids=SMALL_TABLE_IDS,
            id_table_ids_max=SMALL_TABLE_IDS,
            ledger_table_ids=SMALL_TABLE_IDS,
            ledger_table_ids_max=SMALL_TABLE_IDS,
        )
        self.clock = SimClock()
        self.trace = Trace(self.clock, keep_all=trace)
        self.network = SimNetwork(self.clock, plan.seed, Faults(delay_max_ms=5))
        # Addresses at which a broker was, the present one last.
        self.addresses: list[bytes] = [MAIN_ADDRESS]
        names = ("alpha",) if plan.one_host else ("alpha", "beta")
        self.hosts = [
            Host(name, SimDisk(sector_bytes=plan.sector_bytes)) for name in (*names, "elsewhere")
        ]
        # What was promised: by the broker's log, and by each ledger (host, directory).
        self.oracle = BrokerOracle(plan.retain, self._committed)
        self.ledgers: dict[tuple[str, str], LedgerOracle] = {}
        # Whether all is mended, and whether nothing follows from faults any more.
        self.healing = False
        self.at_rest = False
        # How many calls to disks were made to fail, and how often one was full.
        self.io_faults = 0
        self.disks_full = 0
        # What happens to the next process that opens a log.
        self.next_opening: Callable[[Role], None] | None = None
        self._entropy = random.Random(f"{plan.seed} entropy")
        self._timers: list[tuple[int, int, Callable[[], None]]] = []
        self._timer_count = 0

    def _committed(self, grant: GroupGranted) -> int | None:
        """Return where the ledger of a grant stands for good; None: it is no file."""
        model = self.ledgers.get((grant.host, grant.path))
        return None if model is None else model.next_offset

    def draw(self) -> bytes:
        return self._entropy.randbytes(16)

    # --- time ------------------------------------------------------------------------------------

    def after(self, milliseconds: int, work: Callable[[], None]) -> None:
        """Do `work` after some time, between two turns."""
        self._timer_count += 1
        due = self.clock.now_ms() + milliseconds
        heapq.heappush(self._timers, (due, self._timer_count, work))

    @property
    def next_timer_ms(self) -> int | None:
        return self._timers[0][0] if self._timers else None

    def run_timer(self) -> None:
        heapq.heappop(self._timers)[2]()

    # --- the network -----------------------------------------------------------------------------

    def connect(self) -> SimTransport:
        return SimTransport(self, self.connect_endpoint())

    def connect_endpoint(self, address: bytes | None = None) -> Endpoint:
        """`address`: where to; None: to where the broker is."""
        return self.network.connect(self.draw(), self.addresses[-1] if address is None else address)

    def free_address(self) -> bytes:
        """Return where a new broker may listen: the usual place unless another one is there."""
        if not self.network.listening(MAIN_ADDRESS):
            return MAIN_ADDRESS
        return b"broker-%d" % self.trace.counts["broker open"]

    def broker_opened(self, name: str, address: bytes) -> None:
        """A broker serves from now on: new connections go there."""
        self.trace.add(name, "broker open", {"address": address})
        self.addresses.append(address)

    # --- processes -------------------------------------------------------------------------------

    def about_to_open(self, role: Role) -> None:
        happening, self.next_opening = self.next_opening, None
        if happening is not None:
            happening(role)

    @abstractmethod
    def role(self, name: str) -> Role | None:
        """Return who is called `name`."""

    @abstractmethod
    def kill(self, role: Role) -> None:
        """End a process as `kill -9` does; it is started again if it is wanted."""

    @abstractmethod
    def crashed(self, role: Role) -> None:
        """A process died inside a disk call; perhaps its machine did."""

    @abstractmethod
    def ended(self, role: Role, error: BaseException | None, *, serving: bool) -> None:
        """A process ended by itself. `serving`: it had its log open. Raises Violation."""

    @abstractmethod
    def restart(self, role: Role) -> None:
        """Start a process again after a while, as a supervisor or an operator does."""

    @abstractmethod
    def power_cut(self, host: Host, policy: CutPolicy) -> None:
        """Stop a machine: all its processes die, its disk keeps what `policy` says."""

    @abstractmethod
    def cut_power_at_crash(self, role: Role, policy: Callable[[], CutPolicy]) -> None:
        """The crash of `role` that comes now is that of its machine."""

    @abstractmethod
    def may_nest(self) -> bool:
        """Whether one more process may stand still with its turn on the stack."""

    @abstractmethod
    def freeze_inside(self, role: Role, kind: str, pause_ms: int) -> None:
        """Let the world go on while `role` stands still inside a disk call."""
