"""Mutants of state by key: which messages may run together, and what of them a commit may hold."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Any

from oncemq.codec import entries
from oncemq.core.consumer.keyed_schedule import Job, Result, Schedule
from tests.sim.mutants.table import mutant

UNITS = ("tests/library/handling/test_keyed.py",)


def _remember_kept(original: Any) -> Any:
    def broken(self: Any, run: Any, messages: Any, kept: Any, fail: Any) -> None:
        original(self, run, messages, kept, fail)
        self.from_before = set(kept)

    return broken


def _over_holes(original: Any) -> Any:
    def broken(self: Any) -> Any:
        last = max(self._results, default=-1)
        for offset in self._order:
            if offset < last and offset not in self._results:
                self._results[offset] = Result(None, "n:", None, None)  # type: ignore[arg-type]
        return original(self)

    return broken


mutant(
    "offset committed over a hole",
    "a commit holds a contiguous prefix of what is done",
    (Schedule, "prefix", _over_holes),
)


def _failures_passed(original: Any) -> Any:
    def broken(self: Any) -> Any:
        for offset, result in self._results.items():
            self._results[offset] = replace(result, failure=None)
        return original(self)

    return broken


mutant(
    "a failed message of a key is passed",
    "a failure holds the prefix",
    (Schedule, "prefix", _failures_passed),
)


def _beside(original: Any) -> Any:
    def broken(self: Any) -> Any:
        job = original(self)
        if job is None and not self.cut:
            for name, waiting in self._busy.items():
                if waiting:
                    self._waiting -= 1
                    return Job(waiting.popleft(), name, self._entry(name))
        return job

    return broken


def _whoever_ends(original: Any) -> Any:
    def broken(self: Any, job: Any, result: Any) -> None:
        self._busy.setdefault(job.name, deque())
        original(self, job, result)

    return broken


mutant(
    "two messages of one key at the same time",
    "a message waits for those of its key in front of it",
    (Schedule, "next", _beside),
    (Schedule, "finish", _whoever_ends),
)


def _last_first(original: Any) -> Any:
    def broken(self: Any, job: Any, result: Any) -> None:
        self._busy[job.name].reverse()
        original(self, job, result)

    return broken


mutant(
    "messages of one key out of order",
    "messages of one key are handled in the order of their offsets",
    (Schedule, "finish", _last_first),
)


def _handled_again(original: Any) -> Any:
    def broken(self: Any, message: Any, name: str) -> bool:
        done = bool(original(self, message, name))
        if done and name not in self._busy:
            self._busy[name] = deque()
            return False
        return done

    return broken


mutant(
    "carried result applied twice",
    "what is carried to the next call counts in place of another call of its handler",
    (Schedule, "_is_done", _handled_again),
)


def _dropped(original: Any) -> Any:
    def broken(self: Any) -> Any:
        done, failure = original(self)
        before = self.from_before
        first = [offset for offset in self._order if offset not in self._results][: len(done)]
        changed = [
            replace(one, left=one.found, outgoing=()) if offset in before else one
            for offset, one in zip(first, done, strict=False)
        ]
        return changed, failure

    return broken


mutant(
    "carried result dropped but offset moved",
    "a commit holds the effects of all that it passes",
    (Schedule, "__init__", _remember_kept),
    (Schedule, "prefix", _dropped),
)


def _forgotten(original: Any) -> Any:
    def broken(self: Any, run: Any, messages: Any, kept: Any, fail: Any) -> None:
        kept.clear()
        original(self, run, messages, kept, fail)

    return broken


mutant(
    "nothing is carried to the next call",
    "what is done behind a failure is not handled again by the same process",
    (Schedule, "__init__", _forgotten),
)


def _whatever_found(original: Any) -> Any:
    def broken(self: Any, message: Any, name: str) -> bool:
        result = self._results.get(message.offset)
        if result is not None:
            self._results[message.offset] = replace(result, found=self._entry(name))
        return bool(original(self, message, name))

    return broken


mutant(
    "carried result used on another state",
    "a carried result is right for the state that its handler found",
    (Schedule, "_is_done", _whatever_found),
    tests=UNITS,
)


def _of_another_key(original: Any) -> Any:
    return lambda self, name: original(self, min(self._state, default=name))


mutant(
    "state of another key seen",
    "a message finds the state of its own key",
    (Schedule, "_entry", _of_another_key),
)


def _empty_kept(original: Any) -> Any:
    return lambda values: original(values) or bytes((entries.KEYED, 0x80))


mutant(
    "an empty state of a key is kept",
    "a key whose mapping is empty has no entry",
    (entries, "pack_entry", _empty_kept),
)
