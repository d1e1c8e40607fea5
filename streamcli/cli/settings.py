"""What was set in each place in, the settings in force out.

Contract: of two settings of an option, or of two options that exclude each other, the one of the later place counts.
What --body says of it, and whether a key may go to a server, `resolve` decides. No I/O.
Source: streamcli(5), section "Configuration".
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_NOTHING: dict[type, Any] = {bool: False, tuple: ()}


class Place(IntEnum):
    """Where an option can be set, the place that counts least first."""

    DEFAULT = 0
    FILE = 1
    PROFILE = 2
    SHARED_VARIABLE = 3  # that other programs read, too, such as ANTHROPIC_MODEL
    VARIABLE = 4
    COMMAND_LINE = 5


class Setting(NamedTuple):
    """What an option is set to, where, and how --show-config names that place."""

    name: str
    value: Any
    place: Place
    origin: str

    @property
    def is_given(self) -> bool:
        """Whether it says more than that there is nothing."""
        return self.value is not None and self.value is not False and self.value != ()


def in_force(settings: Sequence[Setting], exclusive: Sequence[tuple[str, str]]) -> dict[str, Setting]:
    """The setting of each option that counts; two of the same place may still exclude each other."""
    found: dict[str, Setting] = {}
    for place in Place:
        here = {setting.name: setting for setting in settings if setting.place == place}
        if place == Place.SHARED_VARIABLE:  # what is meant for --local stays on this machine
            here = {name: here[name] for name in here.keys() - _excluded(found, exclusive)}
        for name in found.keys() & _excluded(here, exclusive):
            found[name] = Setting(name, _NOTHING.get(type(found[name].value)), Place.DEFAULT, "default")
        found |= here
    return found


def _excluded(settings: Mapping[str, Setting], exclusive: Sequence[tuple[str, str]]) -> set[str]:
    given = {name for name, setting in settings.items() if setting.is_given}
    return {other for pair in exclusive for name, other in (pair, pair[::-1]) if name in given}
