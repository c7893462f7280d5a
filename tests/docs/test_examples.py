"""What README and docs show is true: code runs, commands and their options exist, links lead on."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from sybil import Sybil
from sybil.document import Document
from sybil.example import Example
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

from oncemq.cli.main import COMMANDS, cli

ROOT = Path(__file__).resolve().parents[2]
TOP = ("README.md", "CONTRIBUTING.md", "SECURITY.md")
PAGES = [*(ROOT / name for name in TOP), *sorted((ROOT / "docs").rglob("*.md"))]
SCRIPTS = {"broker.py": "broker", "producer.py": "producer", "consumer.py": "consumer"}
SHELLS = ("sh", "bash", "console", "shell")
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)\s]*)?\)")
TARGET = re.compile(r"^([a-z-]+):", re.MULTILINE)


class WrongCommand(AssertionError):
    """A documented command that could not be typed like that."""


def commands_of(text: str) -> Iterator[list[str]]:
    """Yield the commands of a shell block as words; lines may go on after a backslash."""
    for line in text.replace("\\\n", " ").splitlines():
        stripped = line.strip().removeprefix("$ ")
        if stripped and not stripped.startswith("#"):
            yield shlex.split(stripped, comments=True)


def check_command(words: list[str]) -> None:
    """Raise WrongCommand unless a command of ours exists with these options."""
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    match words:
        case ["make", *targets]:
            known = set(TARGET.findall((ROOT / "Makefile").read_text("utf-8")))
            for target in targets:
                if "=" not in target and target not in known:
                    raise WrongCommand(f"make has no target {target}")
        case ["oncemq", "supervise", *rest] if "--" in rest:
            check_options("supervise", rest[: rest.index("--")])
            check_command(rest[rest.index("--") + 1 :])
        case ["oncemq" | "python" | "python3", "-m", "oncemq", name, *rest]:
            check_options(name, rest)
        case ["oncemq", name, *rest]:
            check_options(name, rest)
        case ["python" | "python3", script, *rest] if script in SCRIPTS:
            check_options(SCRIPTS[script], rest)
        case ["python" | "python3", "-m", module, *_]:
            path = ROOT / module.replace(".", "/")
            if module.partition(".")[0] in {"examples", "bench", "actors", "tests"} and not (
                path.with_suffix(".py").exists() or (path / "__main__.py").exists()
            ):
                raise WrongCommand(f"there is no module {module}")


def check_options(name: str, words: list[str]) -> None:
    """Raise WrongCommand unless `oncemq name` exists and knows the options among `words`."""
    if name.startswith("-"):
        return
    command = cli.get_command(click.Context(cli), name)
    if command is None:
        raise WrongCommand(f"there is no command {name}, only {sorted(COMMANDS)}")
    while isinstance(command, click.Group):
        inner = next((w for w in words if not w.startswith("-")), None)
        found = None if inner is None else command.get_command(click.Context(command), inner)
        if found is None:
            if inner is not None:
                raise WrongCommand(f"{name} has no command {inner}")
            break
        name, command = f"{name} {inner}", found
    known = {"--help", "-h"}
    for parameter in command.params:
        known.update(parameter.opts, parameter.secondary_opts)
    for word in words:
        option = word.partition("=")[0]
        if option.startswith("--") and len(option) > 2 and option not in known:
            raise WrongCommand(f"{name} has no option {option}")


def evaluate_shell(example: Example) -> None:
    for words in commands_of(example.parsed):
        check_command(words)


def evaluate_json(example: Example) -> None:
    text = str(example.parsed)
    try:
        json.loads(text)
    except json.JSONDecodeError:
        for line in text.splitlines():
            if line.strip():
                json.loads(line)


PARSERS = [
    PythonCodeBlockParser(),
    *(CodeBlockParser(language=shell, evaluator=evaluate_shell) for shell in SHELLS),
    CodeBlockParser(language="json", evaluator=evaluate_json),
]
SYBIL = Sybil(parsers=PARSERS, path=str(ROOT))


def examples(path: Path) -> list[Example]:
    """The code blocks of a page, in order, with one namespace."""
    document = SYBIL.parse(path)
    document.namespace["__name__"] = "documented"
    return list(document.examples())


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_code_of_the_page_works(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each Python block runs, in order; each command shown could be typed; JSON is JSON."""
    monkeypatch.chdir(tmp_path)
    found = examples(page)
    for example in found:
        example.evaluate()
    fences = re.findall(r"^```(\w+)$", page.read_text("utf-8"), re.MULTILINE)
    checked = [fence for fence in fences if fence in {"python", "json", *SHELLS}]
    assert len(found) >= len(checked)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_of_the_page_lead_somewhere(page: Path) -> None:
    """A link inside the repository names a file that is there."""
    links = [link for link in LINK.findall(page.read_text("utf-8")) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


PROCFILES = [ROOT / "Procfile", *sorted((ROOT / "examples").rglob("Procfile"))]


@pytest.mark.parametrize("path", PROCFILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_of_the_procfile_exist(path: Path) -> None:
    """Each process of a Procfile, ours or of an example, could be typed."""
    for line in path.read_text("utf-8").splitlines():
        for part in line.partition(": ")[2].split(" && "):
            words = shlex.split(part)
            while re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words = words[1:]
            check_command([word for word in words if word != "exec"])


def document(tmp_path: Path, text: str) -> list[Example]:
    path = tmp_path / "page.md"
    path.write_text(text, "utf-8")
    parsed = Document.parse(str(path), *PARSERS)
    return list(parsed.examples())


@pytest.mark.parametrize(
    "block",
    [
        "```python\nassert 1 == 2\n```",
        "```sh\nmake no-such-target\n```",
        "```sh\n$ oncemq no-such-command\n```",
        "```console\n$ oncemq supervise -- python broker.py --no-such-option\n```",
        "```bash\npython -m examples.flights.no_such_module\n```",
        "```json\n{'single': 'quotes'}\n```",
    ],
)
def test_a_wrong_example_is_found(tmp_path: Path, block: str) -> None:
    """Code that fails, and commands that do not exist, do not pass."""
    (example,) = document(tmp_path, f"Some words.\n\n{block}\n")
    with pytest.raises((AssertionError, json.JSONDecodeError)):
        example.evaluate()


def test_right_examples_pass(tmp_path: Path) -> None:
    """Code may use what an earlier block made; commands may be continued and commented."""
    text = """
```python
x = 1
```

```sh
make demo SEED=3   # a comment
$ ONCEMQ_LOG_DIR=logs python -m examples.flights.demo
oncemq config \\
    --json
```

```python
assert x == 1
```

```json
{"a": 1}
{"b": 2}
```
"""
    found = document(tmp_path, text)
    for example in found:
        example.evaluate()
    assert len(found) == 4
