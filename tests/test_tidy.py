"""The house rules that no linter knows, as tests. Each failure names file and line."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from oncemq.runtime.event_names import EVENTS

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ("broker.py", "producer.py", "consumer.py", "main.py")
FILE_LINES_MAX = 800  # for actors/: as long as one concept needs, aim at 500
FUNCTION_LINES_MAX = 70
SCRIPT_LINES_MAX = 40
# Written in two halves, so that this file does not find itself.
BANNED = re.compile(
    r"\b(TO"
    r"DO|FIX"
    r"ME|X"
    r"XX|HA"
    r"CK|NotImplemented"
    r"Error)\b"
    r"|\bpic"
    r"kle\b|yaml\.lo"
    r"ad\b|shared/des"
    r"ign"
)
ASSERTING = re.compile(r"^(assert|check|expect|verify|prove|raises|warns|fail|must)")


@cache
def sources(*folders: str) -> tuple[Path, ...]:
    """All Python files below `folders` of the repository."""
    return tuple(path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


@cache
def nodes(module: ast.AST) -> tuple[ast.AST, ...]:
    """All nodes of a tree, walked once for all tests: walking costs more than all that they look for."""
    return tuple(ast.walk(module))


def all_sources() -> tuple[Path, ...]:
    """Every Python file of the project."""
    scripts = tuple(sorted(ROOT.glob("*.py")))
    return scripts + sources("actors", "bench", "examples", "tests")


def place(path: Path, line: int) -> str:
    """`file:line` as editors understand it."""
    return f"{path.relative_to(ROOT)}:{line}"


def functions(module: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method, also nested ones."""
    for node in nodes(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_files_of_actors_are_short() -> None:
    """A file that cannot be read in one sitting is two files."""
    long = [
        f"{place(path, 1)} has {count} lines"
        for path in sources("actors")
        if (count := len(path.read_text("utf-8").splitlines())) > FILE_LINES_MAX
    ]
    assert long == []


def test_functions_are_short() -> None:
    """A function fits on one screen."""
    long = [
        f"{place(path, node.lineno)} {node.name} has {count} lines"
        for path in all_sources()
        for node in functions(tree(path))
        if (count := (node.end_lineno or node.lineno) - node.lineno + 1) > FUNCTION_LINES_MAX
    ]
    assert long == []


def test_scripts_are_thin() -> None:
    """The four scripts only start what lives in actors/."""
    long = [
        name
        for name in SCRIPTS
        if len((ROOT / name).read_text("utf-8").splitlines()) > SCRIPT_LINES_MAX
    ]
    assert long == []


def absolute_imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, first part of the name) of each import that is not relative."""
    for node in nodes(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.lineno, (node.module or "").partition(".")[0]


def test_imports_inside_actors_are_relative() -> None:
    """The package can be moved or vendored: nothing inside names it from outside."""
    found = [
        f"{place(path, line)} imports {name}"
        for path in sources("actors")
        for line, name in absolute_imports(path)
        if name == "oncemq"
    ]
    assert found == []


def test_nothing_imports_the_folder_by_its_own_name() -> None:
    """The package is `oncemq`; `actors` is a name that users may have for a module of theirs."""
    found = [
        place(path, line)
        for path in all_sources()
        for line, name in absolute_imports(path)
        if name == "actors"
    ]
    assert found == []


def test_no_banned_words() -> None:
    """Nothing is left for later, and no format that executes what it reads."""
    documents = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
    others = [ROOT / "Makefile", ROOT / "pyproject.toml", ROOT / ".ci" / "run"]
    found = [
        f"{place(path, number)} {match.group(0)}"
        for path in [*all_sources(), *documents, *others]
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if (match := BANNED.search(line))
    ]
    assert found == []


def module_name(path: Path) -> str:
    """`actors/driver.py` is `oncemq.driver`; a package is its folder."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    parts[0] = {"actors": "oncemq"}.get(parts[0], parts[0])
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def package_of(path: Path) -> list[str]:
    """The parts of the name of the package that a file is in, or is."""
    parts = module_name(path).split(".")
    return parts if path.name == "__init__.py" else parts[:-1]


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """Each import of a file, one for type checkers included: the name it binds, what it names."""
    package = package_of(path)
    for node in nodes(tree(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.asname or alias.name.split(".")[0], alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield alias.asname or alias.name, f"{stem}.{alias.name}"


def named_modules(path: Path) -> Iterator[str]:
    """Every dotted name that `path` imports, or names in a text such as a table of commands."""
    for _, name in imports(path):
        yield from (name, name.rpartition(".")[0])
    package = package_of(path)
    for node in nodes(tree(path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from re.findall(r"\boncemq(?:\.\w+)+", node.value)
            # a lazy table inside a package names its neighbours: ".app" or "app"
            if re.fullmatch(r"\.?[a-z_][a-z_0-9.]*(:\w+)?", node.value):
                yield ".".join([*package, node.value.lstrip(".").split(":")[0]])


def imported(path: Path, modules: frozenset[str]) -> set[str]:
    """Those of `modules` that a file imports, or imports names from."""
    names = {name if name in modules else name.rpartition(".")[0] for _, name in imports(path)}
    return (names & modules) - {module_name(path)}


def circles(arrows: dict[str, set[str]]) -> Iterator[frozenset[str]]:
    """The groups of nodes that reach each other: strongly connected components of more than one."""
    reached: dict[str, set[str]] = {}
    for start in arrows:
        seen: set[str] = set()
        todo = [start]
        while todo:
            for name in arrows[todo.pop()] - seen:
                seen.add(name)
                todo.append(name)
        reached[start] = seen
    done: set[str] = set()
    for name in arrows:
        if name in reached[name] and name not in done:
            circle = frozenset(other for other in reached[name] if name in reached[other])
            done |= circle
            yield circle


def test_no_files_import_each_other() -> None:
    """A file can be read with what it imports, and nothing of that leads back to it."""
    files = {module_name(path): path for path in sources("actors")}
    modules = frozenset(files)
    arrows = {name: imported(path, modules) for name, path in files.items()}
    assert [sorted(circle) for circle in circles(arrows)] == []


def test_circles_are_found() -> None:
    """The search for circles finds what it is for, and nothing else."""
    arrows = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": set(), "f": {"f2"}}
    assert list(circles({**arrows, "f2": {"f"}})) == [frozenset("abc"), frozenset({"f", "f2"})]


def test_no_module_is_changed_from_outside() -> None:
    """What may differ from one object to the next is given to it: see `Limits`."""
    modules = {module_name(path) for path in sources("actors")}
    wrong = []
    for path in sources("actors"):
        bound = {name for name, module in imports(path) if module in modules}
        for node in nodes(tree(path)):
            owner: ast.expr | None = None
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
                owner = node.value
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "setattr":
                owner = node.args[0]
            if isinstance(owner, ast.Name) and owner.id in bound:
                wrong.append(f"{place(path, node.lineno)} changes {owner.id}")
    assert wrong == []


def test_every_file_of_actors_is_used() -> None:
    """A module that nobody imports and no entry table names is dead."""
    used = set(re.findall(r"\boncemq(?:\.\w+)+", (ROOT / "pyproject.toml").read_text("utf-8")))
    for path in all_sources():
        me = module_name(path)
        used.update(name for name in named_modules(path) if name != me)
    dead = [
        place(path, 1)
        for path in sources("actors")
        if path.name not in {"__init__.py", "__main__.py"} and module_name(path) not in used
    ]
    assert dead == []


@pytest.mark.parametrize(
    ("core", "shell"),
    [
        ("BrokerCore", "shells/broker.py"),
        ("ProducerCore", "shells/producer.py"),
        ("ConsumerCore", "shells/consumer.py"),
        ("SeekerCore", "shells/seeker.py"),
    ],
)
def test_each_core_is_put_together_in_one_place(core: str, shell: str) -> None:
    """Processes, test kit and simulator turn the same shell: else the simulator proves a copy."""
    made = [
        path.relative_to(ROOT / "actors").as_posix()
        for path in sources("actors")
        for node in nodes(tree(path))
        if isinstance(node, ast.Call)
        and core in {getattr(node.func, "id", ""), getattr(node.func, "attr", "")}
    ]
    assert made == [shell]


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that people read: all of a page; of a Python file comments and docstrings."""
    text = path.read_text("utf-8")
    if path.suffix != ".py":
        yield from enumerate(text.splitlines(), 1)
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT or token.string.startswith('"""'):
            yield from enumerate(token.string.splitlines(), token.start[0])


def files_named(text: str) -> list[str]:
    """The Python files that a text names, with or without folders; no pattern, no place outside."""
    return re.findall(r"(?<![\w/.*{}<>-])(?:[\w-]+/)*[A-Za-z_]\w*\.py\b", text)


def test_files_named_in_prose_exist() -> None:
    """A reader who follows a name finds the file; a rename takes the prose along."""
    there = {path.relative_to(ROOT).as_posix() for path in all_sources()}
    there |= {re.sub("^actors/", "oncemq/", name) for name in there}
    ends = {name[at:] for name in there for at in range(len(name)) if name[at - 1] == "/"} | there
    ends |= {"manage.py", "shop.py"}  # of users: a Django project, and the handler of README.md
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    stale = [
        f"{place(path, line)} {name}"
        for path in [*all_sources(), *pages]
        for line, text in prose(path)
        for name in files_named(text)
        if name not in ends
    ]
    assert stale == []


def asserts(node: ast.AST) -> bool:
    """Whether a test can fail for a reason of its own."""
    for child in nodes(node):
        if isinstance(child, ast.Assert):
            return True
        if isinstance(child, ast.Call):
            called = child.func
            name = (
                called.attr
                if isinstance(called, ast.Attribute)
                else called.id
                if isinstance(called, ast.Name)
                else ""
            )
            if ASSERTING.match(name.lstrip("_")):
                return True
    return False


def test_each_test_asserts_something() -> None:
    """A test that only runs code promises nothing. Helpers that assert say so in their name."""
    idle = [
        f"{place(path, node.lineno)} {node.name}"
        for path in sources("tests")
        if path.name.startswith("test_")
        for node in functions(tree(path))
        if node.name.startswith("test_") and not asserts(node)
    ]
    assert idle == []


def test_no_error_is_swallowed() -> None:
    """`except: pass` hides what nobody has thought of; a narrow `suppress` says what it expects."""
    swallowed = []
    for path in all_sources():
        for node in nodes(tree(path)):
            if not isinstance(node, ast.ExceptHandler):
                continue
            bare = node.type is None
            broad = isinstance(node.type, ast.Name) and node.type.id in {
                "Exception",
                "BaseException",
            }
            silent = all(
                isinstance(line, ast.Pass)
                or (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant))
                for line in node.body
            )
            if bare or (broad and silent):
                swallowed.append(place(path, node.lineno))
    assert swallowed == []


def field_names(value: ast.AST, scope: ast.AST) -> Iterator[str]:
    """Names of the fields in a literal mapping, also through variables of the same function."""
    if isinstance(value, ast.Dict):
        for key, inner in zip(value.keys, value.values, strict=True):
            if isinstance(key, ast.Constant):
                yield key.value
            elif key is None:  # ** of another mapping
                yield from field_names(inner, scope)
    elif isinstance(value, ast.Name):
        for node in nodes(scope):
            if isinstance(node, ast.Assign) and value.id in {
                target.id for target in node.targets if isinstance(target, ast.Name)
            }:
                yield from field_names(node.value, scope)


def emitted(path: Path) -> Iterator[tuple[int, str, list[str]]]:
    """Every structured event that `path` writes by name: line, name, fields as far as literal.

    Both forms count: `events.emit("name", field=...)` and a pair `("name", {"field": ...})` that
    a core puts into its outcome.
    """
    families = {name.partition(".")[0] for name in EVENTS}
    for scope in functions(tree(path)):
        for node in nodes(scope):
            fields: list[str] = []
            if isinstance(node, ast.Call) and node.args:
                first = node.args[0]
                if getattr(node.func, "attr", "") in {"emit", "info", "debug"}:
                    for keyword in node.keywords:
                        fields += (
                            [keyword.arg] if keyword.arg else field_names(keyword.value, scope)
                        )
            elif isinstance(node, ast.Tuple) and len(node.elts) == 2:
                first = node.elts[0]
                fields += field_names(node.elts[1], scope)
            else:
                continue
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                family, _, rest = first.value.partition(".")
                if family in families and re.fullmatch(r"[a-z_]+", rest) and rest != "py":
                    yield node.lineno, first.value, [field.rstrip("_") for field in fields]


def test_events_written_are_events_listed() -> None:
    """Each event in the code stands in the registry, and so in docs/EVENTS.md, with its fields."""
    wrong = []
    for path in sources("actors"):
        for line, name, fields in emitted(path):
            if name not in EVENTS:
                wrong.append(f"{place(path, line)} {name} is not listed")
            else:
                wrong += [
                    f"{place(path, line)} {name} has no field {field}"
                    for field in fields
                    if field not in EVENTS[name].fields
                ]
    assert wrong == []


@pytest.mark.parametrize("target", ["demo", "test"])
def test_readme_names_the_two_make_targets(target: str) -> None:
    """What the README tells to type exists."""
    assert f"make {target}" in (ROOT / "README.md").read_text("utf-8")
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)


def drawn_tree(page: str) -> dict[str, tuple[str, list[str]]]:
    """The tree of a page: for each folder its rule, and the names of its files."""
    (block,) = re.findall(r"^```\n(actors/ .*?)^```", page, re.MULTILINE | re.DOTALL)
    drawn: dict[str, tuple[str, list[str]]] = {}
    for line in block.splitlines():
        if head := re.match(r"([\w/]+)/ +(\S.*)", line):
            folder, rule = head.groups()
            assert folder not in drawn, f"{folder} is drawn twice"
            drawn[folder] = (rule, [])
        else:
            assert re.match(r" {4,}\S", line), f"neither a folder nor names of files: {line!r}"
            drawn[folder][1].extend(line.split())
    return drawn


def test_the_architecture_page_draws_the_tree_of_actors() -> None:
    """docs/ARCHITECTURE.md names each folder with its rule and each file once, and none that is gone."""
    drawn = drawn_tree((ROOT / "docs" / "ARCHITECTURE.md").read_text("utf-8"))
    present: dict[str, tuple[str, list[str]]] = {"actors": (drawn["actors"][0], [])}
    for path in sources("actors"):
        folder = path.parent.relative_to(ROOT / "actors").as_posix()
        if folder == ".":
            folder = "actors"
        elif path.name == "__init__.py":
            head = (ast.get_docstring(tree(path)) or "").partition("\n")[0]
            present[folder] = (head, [])
        if path.name not in {"__init__.py", "__main__.py"}:
            present[folder][1].append(path.stem)
    assert drawn == {folder: (rule, sorted(names)) for folder, (rule, names) in present.items()}


def test_each_folder_states_its_rule_and_each_file_its_subject() -> None:
    """A newcomer finds the file from the tree: a folder's rule has 3 to 10 lines, a file has a head."""
    wrong = []
    for path in sources("actors"):
        head = ast.get_docstring(tree(path)) or ""
        least, most = (3, 10) if path.name == "__init__.py" else (1, None)
        count = len(head.splitlines())
        if count < least or (most and count > most):
            wrong.append(f"{place(path, 1)} has a head of {count} lines")
    assert wrong == []


def test_text_for_people_takes_one_way() -> None:
    """Commands print by `say`, `tell` and tables, which escape; the library logs by `log`."""
    ways = {"cli/output.py", "runtime/diagnostics.py", "runtime/events.py", "__init__.py"}
    around = re.compile(
        r"\bclick\.s?echo\(|(?<![\w.])print\(|\.std(out|err)\.write\(|\bprint_exc|StreamHandler\("
        r"|\bgetLogger\("
    )
    found = [
        place(path, number)
        for path in sources("actors")
        if path.relative_to(ROOT / "actors").as_posix() not in ways
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if around.search(line) and "getLogger()" not in line and "file=" not in line
    ]
    assert found == [
        place(ROOT / "actors/runtime/event_names.py", number) for number in _page_printers()
    ]


def _page_printers() -> list[int]:
    """The line of event_names.py that prints the page, which holds no text of others."""
    lines = (ROOT / "actors/runtime/event_names.py").read_text("utf-8").splitlines()
    return [number for number, line in enumerate(lines, 1) if "print(page()" in line]
