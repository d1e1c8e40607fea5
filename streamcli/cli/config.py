"""config.toml in, defaults for the options out, each with the place where it was set.

Contract: keys are the long option names; those of a table [profile.NAME] win over those outside. Nothing is imported
for a file that is not there. Whatever is wrong with a file is a usage error that names it.
Source: streamcli(5), section "Configuration".
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from streamcli.errors import UsageError, reason

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

FILE = "config"
# The places where an option may have been set; a later one wins over an earlier one.
ORIGINS = ("default", FILE, "environment", "command line")
NEAR = frozenset(ORIGINS[2:])

# Options whose value may be left out, and what that means; `true` in the configuration.
BARE = {"local": "", "cache": "5m"}

_ADDRESSES, _KEYS = ("base_url", "local"), ("api_key_file", "api_key_cmd", "header")
_NOT_HERE = frozenset({"config", "profile"})


class Layers(NamedTuple):
    """What the configuration sets: values by parameter name, the part of it that each came from, prices by model."""

    values: dict[str, Any]
    origins: dict[str, str]
    prices: Mapping[str, Mapping[str, float]] = {}


def layers(
    path: str | None, profile: str | None, options: Sequence[click.Option], exclusive: Iterable[tuple[str, str]]
) -> Layers:
    """The configuration at `path`, or the usual one if there is one, with a profile's table over it.

    An option of the profile removes those outside that exclude it. Raises click.UsageError for a named file that is not
    there, bad TOML, an unknown key or profile, or a value of the wrong type.
    """
    place = path or usual_path(os.environ)
    if place is None and profile is not None:
        why = "there is no home directory to look for a configuration in: name one with --config"
        raise click.UsageError(f"--profile {profile}: {why}")
    if place is None:
        return Layers({}, {})
    table = _table(place, needed=path is not None or profile is not None)
    profiles = table.pop("profile", {})
    found = Layers({}, {}, _prices(table.pop("price", {}), place))
    if not isinstance(profiles, dict):
        raise click.UsageError(f"{place}: profile is not a table: profiles go into tables [profile.NAME]")
    if profile is not None and profile not in profiles:
        raise click.UsageError(f"{place} has no table [profile.{profile}]{nearest(profile, profiles)}")
    _add(found, table, place, place, options)
    if found.prices:
        found.origins["prices"] = place
    if profile is not None:
        own = Layers({}, {})
        _add(own, profiles[profile], f"[profile.{profile}] of {place}", f"profile {profile}, {place}", options)
        _lay_over(found, own, exclusive)
    return found


def _lay_over(found: Layers, own: Layers, exclusive: Iterable[tuple[str, str]]) -> None:
    """Put what a profile sets of its `own` over what the file sets."""
    for pair in exclusive:
        for name, other in (pair, pair[::-1]):
            if own.values.get(name) not in (None, False) and other not in own.values:
                found.values.pop(other, None)
    if not own.values.keys().isdisjoint(_ADDRESSES):
        # A key that is meant for one server must not go to another.
        for name in _KEYS:
            found.values.pop(name, None)
    found.values.update(own.values)
    found.origins.update(own.origins)


def usual_path(environment: Mapping[str, str]) -> str | None:
    """Where the configuration is if nobody says otherwise: $XDG_CONFIG_HOME/streamcli/config.toml."""
    return _path_at_home("config.toml", environment.get("XDG_CONFIG_HOME", ""), ".config")


def models_path(environment: Mapping[str, str]) -> str | None:
    """Where the names of models are kept for completions: $XDG_CACHE_HOME/streamcli/models."""
    return _path_at_home("models", environment.get("XDG_CACHE_HOME", ""), ".cache")


def _path_at_home(name: str, named: str, usual: str) -> str | None:
    """None where no folder is known by its full name: what lies in the working directory is somebody else's."""
    folder = named if os.path.isabs(named) else os.path.join(os.path.expanduser("~"), usual)
    return os.path.join(folder, "streamcli", name) if os.path.isabs(folder) else None


def _table(path: str, *, needed: bool) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as fault:
        # In a home that may not be entered, as a container may have it, nobody can say that a file is there.
        if not needed and not os.path.lexists(path):
            return {}
        raise click.UsageError(f"cannot read the configuration {path}: {reason(fault)}") from None
    import tomllib  # noqa: PLC0415 - few have a configuration

    from streamcli.protocol.userinput import decoded  # noqa: PLC0415

    try:
        return tomllib.loads(decoded(data, f"the configuration {path}"))
    except UsageError as fault:
        raise click.UsageError(fault.message) from None
    except (ValueError, RecursionError) as fault:
        raise click.UsageError(f"the configuration {path} is not TOML: {reason(fault)}") from None


def _prices(tables: Any, place: str) -> dict[str, dict[str, float]]:
    """The tables [price.MODEL], checked."""
    if not isinstance(tables, dict):
        raise click.UsageError(f'{place}: price is not a table: prices go into tables [price."MODEL"]')
    if not tables:
        return {}
    from streamcli.output import price  # noqa: PLC0415 - few have prices

    prices = {}
    for model, table in tables.items():
        try:
            prices[model] = price.checked(table)
        except ValueError as fault:
            raise click.UsageError(f'{place}: [price."{model}"] {fault}') from None
    return prices


def _add(found: Layers, table: Any, where: str, origin: str, options: Sequence[click.Option]) -> None:
    if not isinstance(table, dict):
        raise click.UsageError(f"{where} is not a table")
    known = {opt[2:]: option for option in options for opt in option.opts if opt.startswith("--")}
    for key, value in table.items():
        option = known.get(key)
        if option is None or option.name is None or option.name in _NOT_HERE:
            raise click.UsageError(f"{where}: {key} is not an option for the configuration{nearest(key, known)}")
        found.values[option.name] = _value(option, value, f"{where}: {key}")
        found.origins[option.name] = origin


def nearest(name: str, known: Collection[str]) -> str:
    """What to add to the message about a name that is not known: the one that it may stand for, or nothing."""
    import difflib  # noqa: PLC0415 - only for a mistake

    names = {each.replace("_", "-"): each for each in known}
    close = [] if name in known else difflib.get_close_matches(name.replace("_", "-"), names, n=1)
    return f"; did you mean {names[close[0]]}?" if close else ""


def _value(option: click.Option, value: Any, what: str) -> Any:
    """A value as click takes it, checked against the option's type."""
    if option.name in BARE and isinstance(value, bool):
        return BARE[option.name] if value else None
    wanted = "true or false" if option.is_flag else "a list of strings" if option.multiple else "a string or a number"
    if option.multiple and isinstance(value, str):
        value = [value]
    fits = (
        isinstance(value, bool)
        if option.is_flag
        else isinstance(value, list) and all(isinstance(item, str) for item in value)
        if option.multiple
        else isinstance(value, str | int | float) and not isinstance(value, bool)
    )
    if not fits:
        raise click.UsageError(f"{what} needs {wanted}")
    if any("\0" in text for text in (value if isinstance(value, list) else [str(value)])):
        raise click.UsageError(f"{what} holds a NUL character")
    try:
        option.type_cast_value(click.Context(click.Command("streamcli")), value)
    except click.BadParameter as fault:
        raise click.UsageError(f"{what}: {fault.message}") from None
    return value
