"""Names and message ids, also those that OnceMQ makes itself, and the choice of a partition.

An explicit id is text or bytes from the sender. Inside the system it is *tagged*: one byte for the
type, then the bytes, so that "1" and b"1" are two ids. A sequence id is (topic, producer,
partition, number), written `topic/producer:partition:number`.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence

from .errors import InvalidName, TooLarge
from .limits import MESSAGE_ID_BYTES_MAX, NAME_BYTES_MAX

TEXT_TAG = b"s"
BYTES_TAG = b"b"
DEAD_SUFFIX = ".dead"
RERUN_MARK = "~"  # between a group and the name of its re-run
ID_HINT = f"an id is text or bytes, 1 to {MESSAGE_ID_BYTES_MAX} bytes long"
IN_DATABASE = " (oncemq_ledger)"  # how the path of a ledger in a database ends
INTERNAL_MARK = "@"  # in names that OnceMQ itself makes; users cannot choose such a name

# Names are joined by ":", "/" and "@" in ids, file names and names of OnceMQ's own: without these
# characters every joined name comes from exactly one tuple of parts.
_FORBIDDEN = frozenset(":/@\x7f")


_ALIKE_CHARS = 3  # names of lengths that differ by more are not alike


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return the end of a sentence that names what is spelled alike; "" if nothing is."""
    import difflib  # by who mistypes a name only

    alike = [one for one in names if abs(len(one) - len(name)) <= _ALIKE_CHARS]
    near = difflib.get_close_matches(name, alike, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def check_name(name: object, what: str = "name") -> str:
    """Return `name` if it may name a topic, producer or group; raise InvalidName otherwise.

    A member of an enum of texts comes back as its text: names are joined to ids and file names.
    """
    if not isinstance(name, str) or not name:
        raise InvalidName(f"{what} must be text that is not empty")
    name = str.__str__(name)
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise InvalidName(f"{what} holds a lone surrogate") from None
    if size > NAME_BYTES_MAX:
        raise InvalidName(
            f"{what} is {size} bytes long, the limit is {NAME_BYTES_MAX}", hint="use a shorter name"
        )
    if any(char in _FORBIDDEN or ord(char) < 32 for char in name):
        raise InvalidName(f"{what} {name!r} holds a character that names may not hold")
    if name in {".", ".."}:
        raise InvalidName(f"{what} {name!r} would name a directory")
    if name.endswith(DEAD_SUFFIX):
        raise InvalidName(f"{what} {name!r} ends in {DEAD_SUFFIX}, which is reserved")
    return name


def check_group(name: object) -> str:
    """Return `name` if it may name a user's group. Raises InvalidName."""
    checked = check_name(name, "group")
    if RERUN_MARK in checked:
        raise InvalidName(
            f"group {checked!r} holds {RERUN_MARK!r}, which names re-runs of groups",
            hint=f"leave {RERUN_MARK!r} out",
        )
    return checked


def rerun_group(group: str, name: str) -> str:
    """Return the group that runs the history of `group` again as `name`. Raises InvalidName."""
    check_name(name, "the name of a re-run")
    if RERUN_MARK in name:
        raise InvalidName(
            f"the name of a re-run {name!r} holds {RERUN_MARK!r}", hint=f"leave {RERUN_MARK!r} out"
        )
    return check_name(f"{group}{RERUN_MARK}{name}", "the group of the re-run")


def output_producer(group: str, topic: str, partition: int) -> str:
    """Return the name under which a consumer's outputs are numbered: `@group/topic/partition`."""
    return f"{INTERNAL_MARK}{group}/{topic}/{partition}"


def dead_topic(topic: str) -> str:
    return topic + DEAD_SUFFIX


def private_topic(topic: str, group: str) -> str:
    """Return the topic whose messages `group` alone handles again as messages of `topic`."""
    return f"{topic}{INTERNAL_MARK}{group}"


def replay_id(partition: int, offset: int) -> str:
    """Return the explicit id of a replayed dead letter: replaying it twice is a duplicate."""
    return f"dead:{partition}:{offset}"


def effect_id(group: str, topic: str, partition: int, offset: int, name: str, number: int) -> str:
    """Return the name of a single call of an effect: no other call ever has the same."""
    return f"{group}:{topic}:{partition}:{offset}:{name}:{number}"


def tagged_id(message_id: str | bytes) -> bytes:
    """Return an explicit id as tagged bytes. Raises TooLarge, InvalidName (empty or wrong type)."""
    if isinstance(message_id, str):
        try:
            tagged = TEXT_TAG + str.encode(message_id)
        except UnicodeEncodeError:
            raise InvalidName("a message id holds a lone surrogate", hint=ID_HINT) from None
    elif isinstance(message_id, bytes):
        tagged = BYTES_TAG + message_id
    else:
        raise InvalidName(f"a {type(message_id).__name__} is no message id", hint=ID_HINT)
    if len(tagged) == 1:
        raise InvalidName("a message id must not be empty", hint=ID_HINT)
    if len(tagged) > MESSAGE_ID_BYTES_MAX + 1:
        raise TooLarge(
            f"a message id is {len(tagged) - 1} bytes long, the limit is {MESSAGE_ID_BYTES_MAX}",
            hint="use a shorter id, a hash of it for example",
        )
    return tagged


def untagged_id(tagged: bytes) -> str | bytes:
    """Return the id that the user gave: the inverse of `tagged_id`."""
    return tagged[1:].decode() if tagged[:1] == TEXT_TAG else tagged[1:]


def sequence_id(topic: str, producer: str, partition: int, number: int) -> str:
    return f"{topic}/{producer}:{partition}:{number}"


def compound_id(fields: Sequence[str]) -> str:
    """Join the fields of a compound id so that different fields never give the same text."""
    if len(fields) == 1:
        return fields[0]
    return ",".join(field.replace("\\", "\\\\").replace(",", "\\,") for field in fields)


def partition_of(key: bytes | None, explicit_id: bytes | None, count: int, partitions: int) -> int:
    """Return the partition of a message.

    By its key; without a key by its tagged id; without either by `count`, the number of such
    messages that went to the topic before it. Clients and brokers of all versions must agree, so
    docs/PROTOCOL.md holds test vectors.
    """
    if partitions == 1:
        return 0
    if key is not None:
        return zlib.crc32(key) % partitions
    if explicit_id is not None:
        return zlib.crc32(explicit_id[1:]) % partitions
    return count % partitions


def utc_text(at_ms: int) -> str:
    """Return a time in milliseconds since 1970 as people read it; modules here know no calendar."""
    days, second = divmod(at_ms // 1000, 86_400)
    era, day_of_era = divmod(days + 719_468, 146_097)  # 400 years that begin in March (Hinnant)
    year = (day_of_era - day_of_era // 1460 + day_of_era // 36_524 - day_of_era // 146_096) // 365
    day_of_year = day_of_era - (365 * year + year // 4 - year // 100)
    month = (5 * day_of_year + 2) // 153
    day = day_of_year - (153 * month + 2) // 5 + 1
    year += 400 * era + (month > 9)
    month = (month + 2) % 12 + 1
    clock = f"{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}"
    return f"{year:04}-{month:02}-{day:02} {clock} UTC"
