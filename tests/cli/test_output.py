"""What all commands print."""

from __future__ import annotations

import json

from oncemq.cli.output import print_json


def test_json_for_programs_is_json_whatever_the_values_are(capsys):
    """NaN and infinities have no form in JSON: they are printed as text, the rest as it is."""
    print_json({"a": [float("nan"), 1.5], "b": {"c": (float("inf"), -float("inf"), "x")}})

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    shown = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert shown == {"a": ["NaN", 1.5], "b": {"c": ["Infinity", "-Infinity", "x"]}}
