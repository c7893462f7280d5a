"""A real PostgreSQL for tests: a server of its own, on a free port, in a directory of its own.

`postgres_server` is started once for all tests of a worker process; `postgres_url` is an empty
schema in it, which costs less than a database. No test cuts the power, so nothing is synced. initdb refuses to run as root, so root hands the directory to a user without rights. Everything
is ended by its own pid and removed at the end. Without the server programs the tests are skipped.
"""

from __future__ import annotations

import getpass
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from oncemq.chaos.programs import free_endpoint, wait_until
from oncemq.runtime.process import end_with_parent

START_S = 60.0
_USERS = ("postgres", "nobody")
_numbers = itertools.count()


def find_programs() -> Path | None:
    """The directory of initdb and postgres; None if they are not installed."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return installed[-1].parent if installed else None


class Server:
    """One PostgreSQL server. `kill` ends it without any clean-up, `start` starts it again."""

    def __init__(self, programs: Path, directory: Path) -> None:
        self._programs = programs
        self.directory = directory
        self.port = int(free_endpoint().rpartition(":")[2])
        self._user: str | None = None
        self._process: subprocess.Popen[bytes] | None = None
        if os.getuid() == 0:
            known = {entry.pw_name for entry in pwd.getpwall()}
            self._user = next(name for name in _USERS if name in known)
            shutil.chown(directory, self._user)
        self._run(
            "initdb",
            *("--pgdata", str(directory / "data"), "--username=tests", "--auth=trust"),
            *("--encoding=UTF8", "--no-locale", "--no-sync"),
        )

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [str(self._programs / program), *arguments],
            user=self._user,
            cwd=self.directory,
            check=True,
            capture_output=True,
            timeout=START_S,
        )

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def url(self) -> str:
        return f"postgresql://tests@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start the server and wait until it answers; after a kill it recovers first."""
        # A killed server's children let go of their shared memory a moment later; until then the
        # next one refuses to start, so it is tried again.
        wait_until(self._try_to_start, START_S, f"PostgreSQL on port {self.port}\n{self.told()}")

    def _try_to_start(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            with (self.directory / "server.log").open("ab") as log:
                self._process = subprocess.Popen(
                    [
                        *(str(self._programs / "postgres"), "-D", str(self.directory / "data")),
                        *("-p", str(self.port), "-h", "127.0.0.1", "-k", str(self.directory)),
                        *(
                            "-c",
                            "max_connections=60",
                            "-c",
                            "shared_buffers=16MB",
                            "-c",
                            "fsync=off",
                        ),
                    ],
                    user=self._user,
                    cwd=self.directory,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    preexec_fn=end_with_parent,
                )
        import psycopg  # here, since every test run loads this file

        try:
            psycopg.connect(self.url(), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def kill(self) -> None:
        """End the server as SIGKILL does; its children notice and end too."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End the server and its children at once."""
        self._end(signal.SIGQUIT)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            os.kill(process.pid, number)
        try:
            process.wait(START_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def make_schema(self) -> str:
        """Make an empty schema; return a URL under which it is the only one."""
        import psycopg

        name = f"test_{next(_numbers)}"
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f"CREATE SCHEMA {name}")  # type: ignore[arg-type]
        return f"{self.url()}?options=-csearch_path%3D{name}"

    def told(self) -> str:
        log = self.directory / "server.log"
        return log.read_text("utf-8", "replace")[-2000:] if log.exists() else ""


def new_server() -> Iterator[Server]:
    """Run one server for as long as the generator lives; skip the test where there is none."""
    programs = find_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed: tests/postgres_install.sh")
    # Below /tmp, not below pytest's directory: that one is closed to other users.
    directory = Path(tempfile.mkdtemp(prefix=f"oncemq-postgres-{getpass.getuser()}-"))
    try:
        server = Server(programs, directory)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    """One server for all tests of this worker; whoever kills it starts it again."""
    yield from new_server()


@pytest.fixture
def postgres_url(postgres_server: Server) -> str:
    return postgres_server.make_schema()
