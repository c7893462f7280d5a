"""What is in the wheel and in the sdist, and what they say of themselves."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

from tests.packaging.installed import ROOT, clean_environ

pytestmark = pytest.mark.slow

INFO = "oncemq-0.1.0.dist-info"


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_an_index_accepts_both(dist: Path) -> None:
    """`twine check --strict`: the metadata are valid and the README renders."""
    paths = [str(path) for path in sorted(dist.iterdir())]
    assert len(paths) == 2
    command = [sys.executable, "-m", "twine", "check", "--strict", *paths]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_wheel_holds_one_package(wheel: Path) -> None:
    """No name but `oncemq` is taken in a user's site-packages."""
    names = set(contents(wheel))
    assert {name.partition("/")[0] for name in names} == {"oncemq", INFO}
    assert {"oncemq/py.typed", "oncemq/__main__.py", f"{INFO}/licenses/LICENSE"} <= names
    kinds = {name.rpartition(".")[2] for name in names if name.startswith("oncemq/")}
    assert kinds == {"py", "typed", "md"}


def test_the_wheel_is_the_same_with_and_without_an_sdist(
    wheel: Path, wheel_of_checkout: Path
) -> None:
    """Who builds from the sdist gets what we release: nothing that it needs is left out."""
    assert contents(wheel) == contents(wheel_of_checkout)


def test_the_sdist_is_complete(sdist: Path) -> None:
    """Every file of the repository but the link, which `make` makes where it is missing."""
    if not (ROOT / ".git").exists():
        pytest.skip("no repository to compare with")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    wanted = {name for name in listed.splitlines() if (ROOT / name).is_file()}
    with tarfile.open(sdist) as archive:
        there = {member.name.partition("/")[2] for member in archive.getmembers()}
    assert wanted <= there
    assert there - wanted == {"PKG-INFO"}


def test_metadata_say_who_what_and_under_which_terms(wheel: Path) -> None:
    files = contents(wheel)
    metadata = HeaderParser().parsestr(files[f"{INFO}/METADATA"].decode())
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("License-File") == ["LICENSE"]
    assert metadata["Author"] == "the OnceMQ authors"
    assert metadata["Requires-Python"] == ">=3.11"
    classifiers = set(metadata.get_all("Classifier") or [])
    versions = {f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)}
    assert versions | {"Typing :: Typed"} <= classifiers
    assert files[f"{INFO}/entry_points.txt"].decode().split() == [
        *("[console_scripts]", "oncemq", "=", "oncemq.cli.main:main"),
        *("[pytest11]", "oncemq", "=", "oncemq.library.testkit.pytest_plugin"),
    ]


def test_what_the_readme_names_is_there_for_who_reads_it_on_an_index(wheel: Path) -> None:
    """No relative links; the pages and files that it names are in the wheel."""
    files = contents(wheel)
    text = HeaderParser().parsestr(files[f"{INFO}/METADATA"].decode()).get_payload()
    assert isinstance(text, str)
    assert re.findall(r"\]\((?!https?://)[^)]*\)", text) == []
    pages = set(re.findall(r"docs/[\w/-]+\.md", text))
    code = set(re.findall(r"oncemq/[\w/]+\.py", text))
    assert len(pages) >= 8
    assert code
    assert {f"oncemq/{page}" for page in pages} | code <= set(files)
    assert "actors/" not in text


def test_a_bare_installation_works(bare: Path, tmp_path: Path) -> None:
    """`oncemq` and `python -m oncemq` are one command, and need no extras."""
    said = []
    for command in ([str(bare), "-m", "oncemq"], [str(bare.parent / "oncemq")]):
        done = subprocess.run(
            [*command, "--help"],
            cwd=tmp_path, env=clean_environ(), capture_output=True, text=True, check=True,
        )  # fmt: skip
        said.append(done.stdout)
    assert said[0] == said[1]
    assert "broker" in said[0]
    check = [str(bare), "-m", "pip", "check", "--disable-pip-version-check"]
    assert (
        subprocess.run(check, env=clean_environ(), check=False, capture_output=True).returncode == 0
    )


@pytest.mark.parametrize(
    ("code", "kept_out"),
    [
        ("import oncemq", "library cli sim chaos maelstrom proof zmq click rich structlog asyncio"),
        ("import oncemq.cli.broker, oncemq.library.broker_process", "sim chaos maelstrom proof"),
        ("import oncemq.cli.consumer, oncemq.library.consuming.process", "sim chaos maelstrom"),
        ("from oncemq import App, Message, Tx; App().producer()", "sim chaos maelstrom proof"),
    ],
)
def test_nobody_loads_what_only_the_simulator_and_chaos_need(
    bare: Path, tmp_path: Path, code: str, kept_out: str
) -> None:
    """They are in the package for `oncemq sim`, `oncemq chaos` and the test kit; others do not pay."""
    watched = f"import sys\n{code}\nprint(*sys.modules)"
    done = subprocess.run(
        [str(bare), "-c", watched],
        cwd=tmp_path, env=clean_environ(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    loaded = set(done.stdout.split())
    unwanted = {name for word in kept_out.split() for name in (word, f"oncemq.{word}")}
    assert loaded & unwanted == set()
