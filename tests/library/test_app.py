"""`App`: what a handler may be is decided where it is written."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from oncemq import App, Message, Tx
from oncemq.errors import InvalidName, InvalidSetting, NotSupported


def test_the_function_stays_as_it_is() -> None:
    """The decorator returns the very function; the app knows topic, group and retries."""
    app = App()

    def handler(message: Message, tx: Tx) -> None: ...

    assert app.consumer("orders", group="billing", retries=2)(handler) is handler
    (consumer,) = app.consumers
    assert (consumer.topic, consumer.group, consumer.retries) == ("orders", "billing", 2)
    assert consumer.handler is handler


async def is_async(message, tx): ...


async def is_async_generator(message, tx):
    yield 1


def is_generator(message, tx):
    yield 1


def one_argument(message): ...


def three_arguments(message, tx, more): ...


def keyword_only(message, *, tx): ...


def of_list(messages: list[Message], tx: Tx) -> None: ...


def of_sequence(messages: Sequence[Message], tx: Tx) -> None: ...


def of_iterable(messages: Iterable[Message], tx: Tx) -> None: ...


class AsyncCall:
    async def __call__(self, message, tx): ...


@pytest.mark.parametrize(
    "function",
    [
        is_async_generator,
        is_generator,
        one_argument,
        three_arguments,
        keyword_only,
        of_list,
        of_sequence,
        of_iterable,
        AsyncCall,
        "not a function",
        None,
    ],
)
def test_what_would_lose_messages_is_a_type_error_at_decoration(function: Any) -> None:
    """Generators, handlers of lists that do not say so and wrong signatures never get a message."""
    app = App()
    with pytest.raises(TypeError) as caught:
        app.consumer("orders", group="billing")(function)
    assert isinstance(caught.value, NotSupported)
    assert app.consumers == []


@pytest.mark.parametrize(
    "function",
    [
        lambda message, tx: None,
        lambda *arguments: None,
        lambda message, tx, more=1: None,
        functools.partial(three_arguments, more=1),
        print,
        is_async,
        AsyncCall(),
        functools.partial(is_async),
    ],
)
def test_other_callables_of_two_are_fine(function: Any) -> None:
    """Whatever can be called with (message, tx)."""
    app = App()
    app.consumer("orders", group="billing")(function)
    assert len(app.consumers) == 1


def test_an_option_that_does_not_exist_is_refused_by_name() -> None:
    """A misspelt option is never taken silently."""
    options: dict[str, Any] = {"retires": 1}
    with pytest.raises(TypeError, match="retires"):
        App().consumer("orders", group="billing", **options)
    with pytest.raises(TypeError, match="retires"):
        App().producer("importer", **options)


def test_group_names_and_retries_are_checked() -> None:
    """The group is required; names and numbers must be possible ones."""
    app = App()
    with pytest.raises(TypeError):
        app.consumer("orders")  # type: ignore[call-arg]
    for topic, group in (("a/b", "g"), ("t", "g@h"), ("t.dead", "g"), ("", "g")):
        with pytest.raises(InvalidName):
            app.consumer(topic, group=group)
    for retries in (-1, True, 1.5, "5"):
        with pytest.raises(ValueError, match="retries"):
            app.consumer("orders", group="billing", retries=retries)  # type: ignore[arg-type]
    app.consumer("orders", group="billing")(lambda m, tx: None)
    app.consumer("orders", group="audit")(lambda m, tx: None)
    with pytest.raises(ValueError, match="has a handler"):
        app.consumer("orders", group="billing")(lambda m, tx: None)
    assert len(app.consumers) == 2


def test_importing_is_light() -> None:
    """`from oncemq import App, Message, Tx` loads no ZeroMQ, click, rich or structlog."""
    code = (
        "import sys; from oncemq import App, Message, Tx; App(); "
        "print([m for m in ('zmq', 'click', 'rich', 'structlog', 'asyncio') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "[]"


def test_every_public_name_can_be_loaded() -> None:
    """What `oncemq` offers is there, and a name that is not says so."""
    import oncemq

    for name in oncemq.__all__:
        assert getattr(oncemq, name).__name__.rpartition(".")[2] == name
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        print(oncemq.Nothing)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"name": "a/b"}, InvalidName),
        ({"name": "t", "dedup": "soon"}, InvalidSetting),
        ({"name": "t", "retain": "1gb"}, InvalidSetting),
        ({"name": "t", "partitions": 0}, ValueError),
        ({"name": "t", "partitions": True}, ValueError),
        ({"name": "twice"}, ValueError),
    ],
)
def test_a_declaration_that_cannot_be_is_refused_at_once(arguments, error):
    """In the user's module, and not when the first message is sent."""
    app = App()
    app.topic("twice", partitions=2, dedup="7d", retain="1GB")
    with pytest.raises(error):
        app.topic(**arguments)
