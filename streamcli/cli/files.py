"""A check of `Args`: each of their files is only read, or is written by one option alone.

Contract: what is read is never written, and no two write into one file, under whatever name, a link's included.
Nothing is opened here. Devices and pipes may be shared.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, NamedTuple

from streamcli.errors import UsageError

from . import config

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

    from .args import Args

_WRITTEN = ("output", "usage_to", "events_to", "record", "conversation")
_READ = (
    *("file", "attach", "body", "system_file", "schema", "tools", "tool"),
    *("replay", "batch", "config", "api_key_file", "ca_file", "local"),
)


class _Use(NamedTuple):
    """Who uses a file, and which; `path` may be a descriptor. `why` is "" where the option itself names it."""

    name: str
    path: str | int
    why: str = ""


def check(args: Args) -> None:
    """Raise UsageError where a file would be written by two, or written while it is read."""
    written: dict[Hashable, _Use] = {}
    for use in _writes(args):
        _claim(written, use)
    for use in _reads(args):
        _claim(dict(written), use)


def _writes(args: Args) -> Iterator[_Use]:
    for name in _WRITTEN:
        yield from _named(args, name)
    if args.output and not args.batch:
        yield _Use("--output", f"{_target(args.output)}.partial", "where a failed run keeps its output")
    if args.output and args.offload:
        yield _Use("--output", f"{args.output}.batches", "where --offload keeps its state")
    if args.conversation:
        yield _Use("--conversation", f"{args.conversation}.torn", "where the incomplete end of a conversation is kept")


def _reads(args: Args) -> Iterator[_Use]:
    for name in _READ:
        yield from _named(args, name)
    usual = None if args.config else config.usual_path(os.environ)
    if usual:
        yield _Use("the configuration", usual)
    if not args.ignore_stdin:
        yield _Use("standard input", 0)


def _named(args: Args, name: str) -> Iterator[_Use]:
    given = getattr(args, name)
    paths = given if isinstance(given, tuple) else (given,)
    is_looked_for = name == "tool"  # on PATH, unless there is a slash in it
    for path in paths:
        if path and path != "-" and ("/" in path or not is_looked_for):
            yield _Use(f"--{name.replace('_', '-')}", path)


def _target(path: str) -> str:
    """Where a link points; the path itself where that cannot be told."""
    try:
        return os.path.realpath(path) if os.path.islink(path) else path
    except OSError:
        return path


def _claim(taken: dict[Hashable, _Use], use: _Use) -> None:
    try:
        key = _identity(use.path)
    except (OSError, ValueError):
        return  # whoever opens it says why that fails
    other = taken.setdefault(key, use) if key else use
    if other is not use:
        why = other.why or use.why
        what = f"{other.name} and {use.name} both name {other.path}"
        raise UsageError(f"{what}, {why}: rename it first" if why else f"{what}: use two files")


def _identity(path: str | int) -> Hashable:
    """What all names of one file have in common; None for what is not a file and need not be one's alone."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return os.path.realpath(str(path))
    return (found.st_dev, found.st_ino) if stat.S_ISREG(found.st_mode) else None
