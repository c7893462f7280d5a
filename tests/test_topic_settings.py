"""The texts of topic settings: what users write, and what is shown to them."""

from __future__ import annotations

import pytest

from oncemq.errors import InvalidSetting
from oncemq.topic_settings import DEFAULTS, TopicSettings, TopicWish

DAY = 86_400_000


@pytest.mark.parametrize(
    ("text", "ms"),
    [("forever", None), ("7d", 7 * DAY), ("12h", DAY // 2), ("90m", 5_400_000), ("250ms", 250)],
)
def test_a_horizon_is_read_as_it_is_written(text, ms):
    """What was set is shown again in the same words."""
    settings = DEFAULTS.changed(dedup=text)
    assert settings == TopicSettings(dedup_ms=ms)
    assert DEFAULTS.changed(dedup=settings.dedup) == settings


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("forever", DEFAULTS),
        ("30d", TopicSettings(retain_ms=30 * DAY)),
        ("1GB", TopicSettings(retain_bytes=10**9)),
        ("1GiB", TopicSettings(retain_bytes=1 << 30)),
        ("processed", TopicSettings(retain_processed=True)),
        ("36h, 500MB, processed", TopicSettings(None, 36 * 3_600_000, 500 * 10**6, True)),
    ],
)
def test_retention_is_an_age_a_size_processed_or_several_of_them(text, settings):
    """What was set is shown again with the same meaning."""
    assert DEFAULTS.changed(retain=text) == settings
    assert DEFAULTS.changed(retain=settings.retain) == settings


@pytest.mark.parametrize(
    ("settings", "dedup", "retain"),
    [
        (DEFAULTS, "forever", "forever"),
        (
            TopicSettings(14 * DAY, 8 * DAY, 1 << 20, retain_processed=True),
            "2w",
            "8d,1MiB,processed",
        ),
        (TopicSettings(retain_bytes=1_234_567), "forever", "1234567B"),
        (TopicSettings(dedup_ms=61_001), "61001ms", "forever"),
    ],
)
def test_settings_are_shown_in_the_largest_unit_that_is_exact(settings, dedup, retain):
    """Nothing is rounded."""
    assert (settings.dedup, settings.retain) == (dedup, retain)


def test_what_is_not_said_stays():
    """A change of one setting leaves the others alone; `forever` takes bounds away."""
    settings = TopicSettings(DAY, 2 * DAY, 1_000, retain_processed=True)
    assert settings.changed() == settings
    assert settings.changed(dedup="2h").retain == settings.retain
    assert settings.changed(retain="forever") == TopicSettings(dedup_ms=DAY)
    assert settings.changed(retain="1h") == TopicSettings(DAY, 3_600_000)


@pytest.mark.parametrize(
    "text", ["0d", "7", "d", "-1d", "1.5h", "7D", "1GB", "7d,3d", "36501d", " "]
)
def test_a_horizon_that_says_nothing_is_refused(text):
    """A typing error is never taken for some horizon."""
    with pytest.raises(InvalidSetting, match="no duration"):
        DEFAULTS.changed(dedup=text)


@pytest.mark.parametrize(
    "text", ["7d,3d", "1GB,2GB", "forever,7d", "7d,,1GB", "0GB", "1gb", "0d", "all", "9" * 20 + "B"]
)
def test_retention_that_says_nothing_is_refused(text):
    """Nor does a typing error delete messages."""
    with pytest.raises(InvalidSetting):
        DEFAULTS.changed(retain=text)


@pytest.mark.parametrize(
    ("wish", "fits"),
    [
        (TopicWish(), True),
        (TopicWish(3, "7d", "1GB"), True),
        (TopicWish(dedup="168h"), True),
        (TopicWish(2), False),
        (TopicWish(dedup="forever"), False),
        (TopicWish(retain="1GB,processed"), False),
    ],
)
def test_a_declared_topic_is_compared_by_what_was_said(wish, fits):
    """By meaning and not by spelling; what was not said fits anything."""
    assert wish.fits(3, "1w", "1GB") == fits


def test_a_declaration_reads_as_a_sentence_part():
    """For the warning that names both."""
    assert str(TopicWish(3, "7d", "1GB")) == "3 partition(s), dedup 7d, retain 1GB"
    assert str(TopicWish(dedup="7d")) == "dedup 7d"
