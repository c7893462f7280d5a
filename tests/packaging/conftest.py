"""The distribution as users get it, built and installed once for all tests of a run.

`make test` runs two workers; the first that asks for a thing makes it, under a lock, and the other
one waits for it. Building and installing use the build backend and the registry of the machine.
"""

from __future__ import annotations

import fcntl
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.packaging.installed import ROOT, clean_environ

Once = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Once:
    """Make a directory by its name, for all workers of this run."""
    base = tmp_path_factory.getbasetemp()
    if worker_id != "master":
        base = base.parent

    def made(name: str, make: Callable[[Path], object]) -> Path:
        path, done = base / name, base / f"{name}.done"
        with (base / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                make(path)
                done.touch()
        return path

    return made


def build(*arguments: str) -> None:
    command = [sys.executable, "-m", "build", "--no-isolation", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=clean_environ(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def dist(once: Once) -> Path:
    return once("dist", lambda path: build("--outdir", str(path), str(ROOT)))


@pytest.fixture(scope="session")
def wheel(dist: Path) -> Path:
    (path,) = dist.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def sdist(dist: Path) -> Path:
    (path,) = dist.glob("*.tar.gz")
    return path


@pytest.fixture(scope="session")
def wheel_of_checkout(once: Once) -> Path:
    directory = once("checkout", lambda path: build("--wheel", "--outdir", str(path), str(ROOT)))
    (path,) = directory.glob("*.whl")
    return path


def install(directory: Path, *requirements: str) -> None:
    venv.create(directory, with_pip=True)
    python = str(directory / "bin" / "python")
    quiet = ["--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [python, "-m", "pip", "install", *quiet, *requirements], env=clean_environ(), check=True
    )


@pytest.fixture(scope="session")
def bare(once: Once, wheel: Path) -> Path:
    """The interpreter of an environment in which the wheel is installed and nothing else."""
    return once("bare", lambda path: install(path, str(wheel))) / "bin" / "python"


@pytest.fixture(scope="session")
def typed(once: Once, wheel: Path) -> Path:
    """The interpreter of an environment with all that typed payloads may be made of."""
    path = once("typed", lambda path: install(path, f"{wheel}[typed]", "pydantic>=2.6"))
    return path / "bin" / "python"
