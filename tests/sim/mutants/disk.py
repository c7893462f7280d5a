"""Mutants of the storage: fsyncs and steps of an opening that somebody forgot."""

from __future__ import annotations

from typing import Any

from oncemq.sim.disk.disk import SimFile, SimProcess
from oncemq.storage import layout, recovery, snapshots, view, writing
from tests.sim.mutants.table import mutant, nothing


def _unless(forgotten: Any) -> Any:
    """Make a sync do nothing where `forgotten(path)` says so."""

    def change(original: Any) -> Any:
        def broken(self: Any, *path: str) -> None:
            if not forgotten(path[0] if path else self._path):
                original(self, *path)

        return broken

    return change


mutant(
    "directory fsync missing",
    "a new name is durable after the fsync of its directory",
    (SimProcess, "sync_directory", _unless(lambda _path: True)),
)
mutant(
    "directory of a generation not synced",
    "a segment is named before anything relies on it",
    (SimProcess, "sync_directory", _unless(lambda path: "gen-" in path)),
)
mutant(
    "log fsync missing",
    "bytes are durable after the fsync of their file",
    (SimFile, "sync", _unless(lambda path: path.endswith(".log"))),
)
mutant(
    "manifest not synced before its rename",
    "a document is durable before its rename",
    (SimFile, "sync", _unless(lambda path: "MANIFEST" in path)),
)
mutant(
    "snapshot parts not synced",
    "a snapshot's parts are durable before its head",
    (SimFile, "sync", _unless(lambda path: "snap" in path or "part" in path)),
)
mutant(
    "a run counts before it is synced",
    "what was made beside the turn is durable before a snapshot names it",
    (SimFile, "sync", _unless(layout.is_mapped)),
)


def _as_known(original: Any) -> Any:
    def broken(disk: Any, directory: str, known: Any = None) -> Any:
        return original(disk, directory) if known is None else known

    return broken


mutant(
    "tail taken before the generation is made",
    "a successor reads the tail when no older writer may act any more",
    (recovery, "read_latest", _as_known),
    faults=("takeover", "slow opening", "freeze"),
)


def _self_attesting(original: Any) -> Any:
    def broken(commit: Any, seed: int) -> bytes:
        from dataclasses import replace

        return bytes(original(replace(commit, attested=commit.end), seed))

    return broken


mutant(
    "a frame attests its own group",
    "only what a returned fsync covers is attested: all else may be torn",
    (writing, "encode_commit", _self_attesting),
    tests=("tests/storage/test_recovery.py",),
)


def _keep_one(original: Any) -> Any:
    def broken(disk: Any, path: str, known: Any) -> Any:
        kept = snapshots.SNAPSHOTS_KEPT
        snapshots.SNAPSHOTS_KEPT = 1
        try:
            return original(disk, path, known)
        finally:
            snapshots.SNAPSHOTS_KEPT = kept

    return broken


mutant(
    "only one snapshot kept",
    "a damaged snapshot has another one behind it",
    (snapshots, "prune", _keep_one),
    tests=("tests/storage/test_snapshots.py",),
)
mutant(
    "torn bytes carried over",
    "recovery takes whole groups only",
    (recovery.Opening, "_copy", lambda original: _with_loose_end(original)),
)


def _with_loose_end(original: Any) -> Any:
    def broken(self: Any, path: str, number: int, parent: Any) -> Any:
        tail = parent.tail
        if tail is not None and not parent.tail_is_new and parent.cut is not None:
            parent.end = min(parent.cut.to_position, parent.end + 16)
        return original(self, path, number, parent)

    return broken


mutant(
    "damage cut like a torn tail",
    "only what nothing attests may be cut",
    (view, "attesting_frame", nothing),
    tests=("tests/storage/test_recovery.py",),
)
mutant(
    "probe for room forgotten, and leftovers kept",
    "an opening that found the disk full leaves nothing behind",
    (layout, "remove_generation", nothing),
    tests=("tests/storage/test_recovery.py",),
)
