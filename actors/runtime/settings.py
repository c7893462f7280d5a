"""Settings: flag > environment > argument > default, and each setting knows its source.

The order goes from the particular to the general. A flag belongs to this start of the process, the
environment to this machine, an argument to the program (`App(broker=...)`), the default to OnceMQ.
An empty environment variable counts as absent.
"""

from __future__ import annotations

import ipaddress
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from ..errors import OnceMQError
from ..limits import DRAIN_S_DEFAULT

Value = str | float | None


class BadSetting(OnceMQError):
    """A setting that cannot be used. The reason names the setting, its value and its source."""

    code = "bad_setting"


@dataclass(frozen=True, slots=True)
class Setting:
    """A resolved setting."""

    name: str
    value: Value
    source: str  # "flag --broker", "environment ONCEMQ_BROKER", "argument" or "default"

    @property
    def shown(self) -> Value:
        """Without a password."""
        return without_password(self.value) if isinstance(self.value, str) else self.value


@dataclass(frozen=True, slots=True)
class Spec:
    """A setting that exists: its flag is `--name`, its variable ONCEMQ_NAME."""

    name: str
    default: Value
    meaning: str
    parse: Callable[[str], Value]
    metavar: str

    @property
    def variable(self) -> str:
        return "ONCEMQ_" + self.name.upper()

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


_TCP = re.compile(r"tcp://(?:([A-Za-z0-9][A-Za-z0-9._-]*)|\[([^\s\[\]]+)\]):([0-9]{1,5})")
_SOCKET_PATH_BYTES = 103 if sys.platform == "darwin" else 107  # as the kernel allows


def _endpoint(text: str) -> str:
    match = _TCP.fullmatch(text)
    if match is not None and 1 <= int(match.group(3)) <= 65535:
        if match.group(2) is not None:
            _check_ipv6(match.group(2))
        return text
    if re.fullmatch(r"ipc://\S+", text):
        length = len(os.fsencode(text.removeprefix("ipc://")))
        if length > _SOCKET_PATH_BYTES:
            raise ValueError(
                f"the path of a socket has at most {_SOCKET_PATH_BYTES} bytes, this one has {length}"
            )
        return text
    raise ValueError(
        "expected tcp://HOST:PORT with a port from 1 to 65535 (an IPv6 address in brackets:"
        " tcp://[::1]:7400), or ipc://PATH"
    )


def _check_ipv6(address: str) -> None:
    """Raises ValueError."""
    try:
        ipaddress.IPv6Address(address)
    except ValueError:
        raise ValueError(f"{address} in brackets is no IPv6 address") from None


def _bind(text: str) -> str:
    """Accept an endpoint, and `*` or port 0: then the system chooses the host or the port."""
    fixed = re.sub(r":(?:\*|0)\Z", ":1", text) if text.startswith("tcp://") else text
    return _endpoint(fixed.replace("tcp://*:", "tcp://0.0.0.0:", 1)) and text


def _directory(text: str) -> str:
    if not text.strip() or "\0" in text:
        raise ValueError("expected a directory")
    if os.path.exists(text) and not os.path.isdir(text):
        raise ValueError("this is a file; expected a directory")
    return text


def _sink(text: str) -> str:
    if not re.fullmatch(r"sqlite:///[^\s\0?][^\0?]*|postgres(?:ql)?://\S+", text):
        raise ValueError(
            "expected sqlite:///PATH (sqlite:////PATH from the root) or postgresql://HOST/DATABASE"
        )
    return text


def working_directory() -> str:
    """Return the working directory; "" if it was removed: then relative paths fail where they are used."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""


def without_password(text: str) -> str:
    """Return `text`, such as a URL or a command line, with the passwords of URLs masked."""
    text = re.sub(r"(://[^/@:\s]*):[^/@\s]*@", r"\1:***@", text)
    return re.sub(r"([?&]password=)[^&\s]*", r"\1***", text)


_WORDS = {"yes": "yes", "true": "yes", "1": "yes", "no": "no", "false": "no", "0": "no"}


def _yes_or_no(text: str) -> str:
    if text.lower() not in _WORDS:
        raise ValueError("expected yes or no")
    return _WORDS[text.lower()]


def _log_level(text: str) -> str:
    if text not in {"info", "debug"}:
        raise ValueError("expected info or debug")
    return text


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise ValueError("expected a number of seconds") from None
    if not 0 <= seconds <= 86_400:
        raise ValueError("expected 0 to 86400 seconds")
    return seconds


SPECS: dict[str, Spec] = {
    spec.name: spec
    for spec in (
        Spec("broker", "tcp://127.0.0.1:7400", "address of the broker", _endpoint, "EP"),
        Spec("bind", "tcp://127.0.0.1:7400", "address that the broker listens on", _bind, "EP"),
        Spec(
            "create_topics",
            "yes",
            "whether sends and consumers create topics that do not exist (the broker's)",
            _yes_or_no,
            "yes|no",
        ),
        Spec("data", "data/broker", "the broker's log", _directory, "DIR"),
        Spec("state", "data/consumers", "directory of the consumers' ledgers", _directory, "DIR"),
        Spec("sink", None, "the database that holds the outbox", _sink, "URL"),
        Spec("log_dir", None, "directory for event files, role-pid.jsonl", _directory, "DIR"),
        Spec(
            "log_level",
            "info",
            "info (events of batches) or debug (events of messages)",
            _log_level,
            "LEVEL",
        ),
        Spec(
            "drain", DRAIN_S_DEFAULT, "how long handlers may run after SIGTERM", _seconds, "SECONDS"
        ),
    )
}


def resolve(
    name: str,
    *,
    flag: str | float | None = None,
    argument: str | float | None = None,
    environ: Mapping[str, str] | None = None,
) -> Setting:
    """Return setting `name` with its source. None means "not given".

    Raises BadSetting; a bad value is never passed over in favour of a weaker source.
    """
    spec = SPECS[name]
    variable = (os.environ if environ is None else environ).get(spec.variable) or None
    for source, given in (
        (f"flag {spec.flag}", flag),
        (f"environment {spec.variable}", variable),
        ("argument", argument),
    ):
        if given is None:
            continue
        try:
            return Setting(name, spec.parse(str(given)), source)
        except ValueError as error:
            label = spec.name.replace("_", " ")
            told = without_password(str(given))
            raise BadSetting(f"{label} from {source}: {told!r}", hint=str(error)) from None
    return Setting(name, spec.default, "default")


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of a process, resolved together."""

    by_name: Mapping[str, Setting]
    # Where relative paths lead from: the working directory at the start. Handlers may change theirs.
    directory: str

    names: ClassVar[tuple[str, ...]] = tuple(SPECS)

    @classmethod
    def load(
        cls,
        flags: Mapping[str, str | float | None] | None = None,
        arguments: Mapping[str, str | float | None] | None = None,
        environ: Mapping[str, str] | None = None,
        directory: str | None = None,
    ) -> Settings:
        """Each mapping goes from setting name to value. Raises BadSetting.

        Relative paths lead from `directory`, by default the working directory of this moment.
        """
        flags, arguments = flags or {}, arguments or {}
        unknown = (set(flags) | set(arguments)) - set(SPECS)
        assert not unknown, f"unknown setting: {sorted(unknown)}"
        return cls(
            {
                name: resolve(
                    name, flag=flags.get(name), argument=arguments.get(name), environ=environ
                )
                for name in SPECS
            },
            working_directory() if directory is None else directory,
        )

    def _path(self, name: str) -> str:
        return os.path.join(self.directory, self._text(name))

    def _text(self, name: str) -> str:
        value = self.by_name[name].value
        assert isinstance(value, str)
        return value

    @property
    def broker(self) -> str:
        return self._text("broker")

    @property
    def bind(self) -> str:
        return self._text("bind")

    @property
    def data(self) -> str:
        return self._path("data")

    @property
    def state(self) -> str:
        return self._path("state")

    @property
    def create_topics(self) -> bool:
        """Whether the broker creates a topic that a send or a consumer names."""
        return self._text("create_topics") == "yes"

    @property
    def sink(self) -> str | None:
        value = self.by_name["sink"].value
        return None if value is None else str(value)

    @property
    def log_dir(self) -> str | None:
        """None for stderr."""
        return None if self.by_name["log_dir"].value is None else self._path("log_dir")

    @property
    def log_level(self) -> str:
        return self._text("log_level")

    @property
    def drain_s(self) -> float:
        """Seconds that a stopping consumer waits for its handlers."""
        value = self.by_name["drain"].value
        assert isinstance(value, float)
        return value

    def as_dict(self) -> dict[str, dict[str, Value]]:
        return {
            name: {"value": setting.shown, "source": setting.source}
            for name, setting in self.by_name.items()
        }
