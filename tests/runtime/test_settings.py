"""Settings: which source wins, what is refused, and that the source is always named."""

from __future__ import annotations

from pathlib import Path

import pytest

from oncemq.runtime.settings import SPECS, BadSetting, Setting, Settings, resolve, without_password

FLAG, VARIABLE, ARGUMENT = "tcp://flag:1", "tcp://variable:2", "tcp://argument:3"


@pytest.mark.parametrize(
    ("flag", "variable", "argument", "expected"),
    [
        (FLAG, VARIABLE, ARGUMENT, Setting("broker", FLAG, "flag --broker")),
        (None, VARIABLE, ARGUMENT, Setting("broker", VARIABLE, "environment ONCEMQ_BROKER")),
        (None, "", ARGUMENT, Setting("broker", ARGUMENT, "argument")),
        (None, None, None, Setting("broker", "tcp://127.0.0.1:7400", "default")),
    ],
)
def test_the_strongest_source_wins(
    flag: str | None, variable: str | None, argument: str | None, expected: Setting
) -> None:
    """Flag > environment > argument > default; an empty variable is an absent one."""
    environ = {} if variable is None else {"ONCEMQ_BROKER": variable}
    assert resolve("broker", flag=flag, argument=argument, environ=environ) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("broker", "localhost:7400"),
        ("broker", "tcp://localhost"),
        ("broker", "tcp://localhost:0"),
        ("broker", "tcp://localhost:65536"),
        ("broker", "tcp://*:7400"),
        ("broker", "udp://localhost:7400"),
        ("broker", ""),
        ("broker", "tcp://[::g]:7400"),
        ("broker", "tcp://::1:7400"),
        ("broker", "tcp://h$st:7400"),
        ("broker", "tcp://localhost:٧٤٠٠"),
        ("broker", "ipc:///" + "a" * 107),
        ("bind", "ipc:///" + "a" * 107),
        ("bind", "tcp://[1:2]:*"),
        ("bind", "tcp://*:seven"),
        ("data", " "),
        ("data", __file__),
        ("log_level", "warning"),
        ("create_topics", "maybe"),
        ("sink", "shop.db"),
        ("sink", "sqlite://"),
        ("sink", "sqlite:///"),
        ("sink", "sqlite:///shop.db?mode=ro"),
        ("sink", "mysql://host/shop"),
        ("drain", "soon"),
        ("drain", "-1"),
        ("drain", "nan"),
    ],
)
def test_a_bad_value_is_refused_by_name(name: str, value: str) -> None:
    """The error tells setting, value and source; a weaker good source does not hide it."""
    with pytest.raises(BadSetting) as caught:
        resolve(name, flag=value, argument=SPECS[name].default, environ={})
    assert repr(value) in str(caught.value)
    assert SPECS[name].flag in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("broker", "tcp://broker.example:7400"),
        ("broker", "tcp://[::1]:7400"),
        ("broker", "tcp://[fe80::1%eth0]:7400"),
        ("broker", "ipc:///tmp/oncemq.sock"),
        ("broker", "ipc:///" + "a" * 102),
        ("bind", "tcp://[::]:0"),
        ("bind", "tcp://[::1]:*"),
        ("bind", "tcp://*:7400"),
        ("bind", "tcp://127.0.0.1:*"),
        ("bind", "tcp://127.0.0.1:0"),
        ("log_level", "debug"),
        ("sink", "sqlite:///shop.db"),
        ("sink", "sqlite:////var/lib/my shop/shop.db"),
        ("sink", "postgresql://user:secret@host:5432/shop?sslmode=require"),
        ("sink", "postgres:///shop"),
    ],
)
def test_good_values_are_taken_as_they_are(name: str, value: str) -> None:
    """What was written is what is used."""
    assert resolve(name, flag=value, environ={}).value == value


@pytest.mark.parametrize(
    ("text", "creates"), [("yes", True), ("TRUE", True), ("1", True), ("no", False), ("0", False)]
)
def test_words_for_yes_and_no(text: str, creates: bool) -> None:
    """The environment spells them in many ways."""
    settings = Settings.load(environ={"ONCEMQ_CREATE_TOPICS": text})
    assert settings.create_topics is creates


def test_all_settings_together(tmp_path: Path) -> None:
    """One load gives typed values and their sources."""
    settings = Settings.load(
        flags={"drain": 2, "log_dir": None},
        arguments={"state": str(tmp_path)},
        environ={"ONCEMQ_LOG_DIR": str(tmp_path / "logs"), "ONCEMQ_LOG_LEVEL": "debug"},
        directory="/start",
    )
    assert settings.drain_s == 2.0
    assert settings.state == str(tmp_path)
    assert settings.log_dir == str(tmp_path / "logs")
    assert settings.log_level == "debug"
    assert (settings.data, settings.bind) == ("/start/data/broker", "tcp://127.0.0.1:7400")
    sources = {name: found["source"] for name, found in settings.as_dict().items()}
    assert sources == {
        "broker": "default",
        "bind": "default",
        "create_topics": "default",
        "data": "default",
        "state": "argument",
        "sink": "default",
        "log_dir": "environment ONCEMQ_LOG_DIR",
        "log_level": "environment ONCEMQ_LOG_LEVEL",
        "drain": "flag --drain",
    }


def test_defaults_would_be_accepted_if_given() -> None:
    """No default breaks the rules of its own setting."""
    for name, spec in SPECS.items():
        if spec.default is not None:
            assert resolve(name, flag=spec.default, environ={}).value == spec.default


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("postgresql://shop:s3cret@host/db", "postgresql://shop:***@host/db"),
        (
            "postgresql://shop@host/db?password=s3cret&x=1",
            "postgresql://shop@host/db?password=***&x=1",
        ),
        ("--sink=postgresql://:s3cret@host/db", "--sink=postgresql://:***@host/db"),
        ("tcp://127.0.0.1:7400", "tcp://127.0.0.1:7400"),
        ("sqlite:////a/b@c:d.db", "sqlite:////a/b@c:d.db"),
    ],
)
def test_passwords_are_not_told(text: str, told: str) -> None:
    """What is shown to people and written to event files has no password in it."""
    assert without_password(text) == told
    for bad in ("", "mysql+"):
        given = bad + "postgresql://shop:s3cret@host/db x"
        with pytest.raises(BadSetting) as caught:
            resolve("sink", flag=given, environ={})
        assert "s3cret" not in str(caught.value)
    settings = Settings.load(flags={"sink": "postgresql://shop:s3cret@host/db"}, environ={})
    assert settings.sink == "postgresql://shop:s3cret@host/db"
    assert "s3cret" not in str(settings.as_dict())
