"""config.toml in, what it sets out.

Contract: keys are the long option names; prices are beside them. Nothing is imported for a file that is not there.
Whatever is wrong with a file is a usage error that names it.
Source: streamcli(5), section "Configuration".
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from streamcli.errors import UsageError, reason
from streamcli.protocol.userinput import decoded, nearest

from .settings import Place, Setting

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_ADDRESSES, _KEYS = ("base_url", "local"), ("api_key_file", "api_key_cmd", "header")
_NOT_HERE = frozenset({"config", "profile"})
# What options take here: how messages call it, and its types.
_KINDS: dict[str, tuple[str, set[type]]] = {
    "flag": ("true or false", {bool}),
    "list": ("a list of strings", {str}),
    "one": ("a string or a number", {str, int, float}),
}


def configured(
    path: str | None, profile: str | None, options: Sequence[click.Option], bare: Mapping[str, str]
) -> tuple[list[Setting], dict[str, dict[str, float]]]:
    """What the configuration at `path`, or the usual one if there is one, and its profile set; prices by model.

    `bare` says what `true` means for the options whose value may be left out. Raises UsageError for a named file
    that is not there, bad TOML, an unknown key or profile, or a value of the wrong type.
    """
    place = path or usual_path(os.environ)
    if place is None and profile is not None:
        why = "there is no home directory to look for the configuration in: name a file with --config"
        raise UsageError(f"--profile {profile}: {why}")
    if place is None:
        return [], {}
    table = _table(place, needed=path is not None or profile is not None)
    profiles = table.pop("profile", {})
    prices = _prices(table.pop("price", {}), place)
    if not isinstance(profiles, dict):
        raise UsageError(f"{place}: profile is not a table: profiles go into tables [profile.NAME]")
    if profile is not None and profile not in profiles:
        raise UsageError(f"{place} has no table [profile.{profile}]{nearest(profile, profiles)}")
    found = [Setting(*pair, Place.FILE, place) for pair in _values(table, place, options, bare)]
    if profile is not None:
        pairs = _values(profiles[profile], f"[profile.{profile}] of {place}", options, bare)
        own = [Setting(*pair, Place.PROFILE, f"profile {profile}, {place}") for pair in pairs]
        if any(setting.name in _ADDRESSES for setting in own):
            # A key that is meant for one server must not go to another.
            found = [setting for setting in found if setting.name not in _KEYS]
        found += own
    return found, prices


def usual_path(environment: Mapping[str, str]) -> str | None:
    """Where the configuration is by default: $XDG_CONFIG_HOME/streamcli/config.toml."""
    return _path_at_home("config.toml", environment.get("XDG_CONFIG_HOME", ""), ".config")


def models_path(environment: Mapping[str, str]) -> str | None:
    """Where the names of models are kept for completions: $XDG_CACHE_HOME/streamcli/models."""
    return _path_at_home("models", environment.get("XDG_CACHE_HOME", ""), ".cache")


def _path_at_home(name: str, named: str, usual: str) -> str | None:
    """None if no absolute path is known: what lies in the working directory may be somebody else's."""
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
        raise UsageError(f"cannot read the configuration {path}: {reason(fault)}") from None
    import tomllib  # noqa: PLC0415 - few have a configuration

    try:
        return tomllib.loads(decoded(data, f"the configuration {path}"))
    except (ValueError, RecursionError) as fault:
        raise UsageError(f"the configuration {path} is not TOML: {reason(fault)}") from None


def _prices(tables: Any, place: str) -> dict[str, dict[str, float]]:
    """The tables [price.MODEL], checked."""
    if not isinstance(tables, dict):
        raise UsageError(f'{place}: price is not a table: prices go into tables [price."MODEL"]')
    if not tables:
        return {}
    from streamcli.output import price  # noqa: PLC0415 - few have prices

    prices = {}
    for model, table in tables.items():
        try:
            prices[model] = price.checked(table)
        except ValueError as fault:
            raise UsageError(f'{place}: [price."{model}"] {fault}') from None
    return prices


def _values(
    table: Any, where: str, options: Sequence[click.Option], bare: Mapping[str, str]
) -> Iterator[tuple[str, Any]]:
    """The names of the options that a table sets, and what they are set to."""
    if not isinstance(table, dict):
        raise UsageError(f"{where} is not a table")
    known = {opt[2:]: option for option in options for opt in option.opts if opt.startswith("--")}
    for key, value in table.items():
        option = known.get(key)
        if option is None or option.name is None or option.name in _NOT_HERE:
            raise UsageError(f"{where}: {key} is not a key of the configuration{nearest(key, known)}")
        if option.name in bare and isinstance(value, bool):
            yield option.name, bare[option.name] if value else None
        else:
            yield option.name, _value(option, value, f"{where}: {key}")


def _value(option: click.Option, value: Any, what: str) -> Any:
    """The value that the option has if it is set to `value`."""
    wanted, kinds = _KINDS["flag" if option.is_flag else "list" if option.multiple else "one"]
    items = value if option.multiple and isinstance(value, list) else [value]
    if not all(type(item) in kinds for item in items):
        raise UsageError(f"{what} needs {wanted}")
    if any("\0" in str(item) for item in items):
        raise UsageError(f"{what} holds a NUL character")
    try:
        return option.type_cast_value(click.Context(click.Command("streamcli")), items if option.multiple else value)
    except click.BadParameter as fault:
        raise UsageError(f"{what}: {fault.message}") from None
