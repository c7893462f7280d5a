"""What type checkers of users see of the installed package.

`user/*.py` is code of a user: a line that ends in `# error` is wrong and must be reported, every
other one must be clean.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging.installed import ROOT, clean_environ

pytestmark = pytest.mark.slow

USER = Path(__file__).parent / "user"
CONFIG = {"typeCheckingMode": "strict", "pythonVersion": "3.11"}


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """The user's directory: this project's settings do not reach it."""
    for path in USER.glob("*.py"):
        shutil.copy(path, tmp_path)
    first = (ROOT / "README.md").read_text("utf-8").partition("```python\n")[2].partition("```")[0]
    assert first.startswith("# shop.py\n")
    (tmp_path / "shop.py").write_text(first, "utf-8")
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(CONFIG), "utf-8")
    return tmp_path


def wrong_lines(code: Path) -> set[tuple[str, int]]:
    """Return (file, line) of what is marked as wrong."""
    return {
        (path.name, number)
        for path in code.glob("*.py")
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if line.endswith("# error")
    }


def test_mypy_strict(code: Path, typed: Path) -> None:
    """`mypy --strict` finds what is wrong and nothing else."""
    files = sorted(path.name for path in code.glob("*.py"))
    options = ["--strict", "--no-error-summary", "--python-executable", str(typed)]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, *files],
        cwd=code, env=clean_environ(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = re.findall(r"^([\w.]+):(\d+): error", done.stdout, re.MULTILINE)
    assert {(name, int(line)) for name, line in found} == wrong_lines(code), (
        done.stdout + done.stderr
    )


def test_pyright_strict(code: Path, typed: Path) -> None:
    """pyright in strict mode finds what is wrong and nothing else."""
    if shutil.which("node") is None:
        pytest.skip("pyright runs on node, which this machine does not have")
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--pythonpath", str(typed), "--outputjson"],
        cwd=code,
        env=clean_environ(PYRIGHT_PYTHON_IGNORE_WARNINGS="1"),
        capture_output=True,
        text=True,
        check=False,
    )
    report = json.loads(done.stdout)
    found = {
        (Path(one["file"]).name, one["range"]["start"]["line"] + 1)
        for one in report["generalDiagnostics"]
        if one["severity"] == "error"
    }
    assert found == wrong_lines(code), done.stdout
    assert report["summary"]["filesAnalyzed"] == len(list(code.glob("*.py")))
