"""A backup of a log that retention has shortened: what is left, kept parts included, comes back."""

from __future__ import annotations

from oncemq.library.backups.fsck import check_files
from oncemq.proof.verify.verify import verify
from tests.core.broker.keeping import stored_from
from tests.core.broker.test_kept import Pinned
from tests.library.backups.small import job
from tests.library.backups.test_restore import quiet, restore


def test_what_is_left_comes_back() -> None:
    """Also what lies in kept parts, which the segments of the log no longer hold."""
    world = Pinned()
    world.churn(300)
    assert world.parts()
    assert world.log.start > 0
    disk, slow, first = world.disk, world.slow(), world.start_of()
    assert [one for one in check_files(disk, "data", None, quiet, quiet) if one.damage] == []
    backup = job(disk, state=None).run().path
    world.driver.close()
    disk.drop_locks()
    restore(disk, directory=backup, data="again", state=None).run()
    report = verify(disk, "again", None)
    assert report.ok, report.found.kept
    world.directory = "again"
    world.start()
    world.open_peers()
    assert stored_from(world, 0, topic="slow") == slow
    assert stored_from(world, first)[0] == f"{first:04}"
