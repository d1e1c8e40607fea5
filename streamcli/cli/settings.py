"""What was set in each place in, the settings in force out.

Contract: of two settings of an option, or of two options that exclude each other, the one of the later place counts;
what is put out so puts nothing out itself. What --body says of it, and whether a key may go to a server, `resolve`
decides. No I/O.
Source: streamcli(5), section "Configuration".
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    put_out: set[str] = set()
    for place in reversed(Place):
        here = [setting for setting in settings if setting.place == place and setting.name not in put_out]
        for setting in here:
            found.setdefault(setting.name, setting)
        if place != Place.SHARED_VARIABLE:  # what is meant for --local stays on this machine
            given = {setting.name for setting in here if setting.is_given and found[setting.name].is_given}
            put_out |= {other for pair in exclusive for name, other in (pair, pair[::-1]) if name in given}
    for name, value, *_ in settings:
        if name not in found or (name in put_out and found[name].place == Place.SHARED_VARIABLE):
            found[name] = Setting(name, _NOTHING.get(type(value)), Place.DEFAULT, "default")
    return found
