"""Executables as tools: what they say of themselves, and what they return to the model's calls.

Contract: `PROGRAM --describe` prints its definition. A call passes the tool input to the program as one line of JSON on
standard input; its standard output is the result. What a program does wrong is a result that says so, never an
exception. `processes` runs and ends the programs.
Source: streamcli(5), section "TOOLS".
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
from typing import TYPE_CHECKING, Any, NamedTuple

from streamcli.errors import ToolError, UsageError, reason
from streamcli.protocol.jsontext import dumps, loads_exact, object_in
from streamcli.protocol.secrets import split_scheme
from streamcli.protocol.userinput import json_value

from .processes import End, Job, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

MAX_BYTES = 1 << 20
# How many characters of a failed program's message the model is told: the last ones. One is 4 bytes at most.
_TAIL = 2000

_DECLINED = "the user declined this call: it was not run"
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")
_SECRET_VARIABLES = frozenset(
    {
        "ANTHROPIC_API_KEY",
        "ANTHROPIC_AUTH_TOKEN",
        "ANTHROPIC_CUSTOM_HEADERS",
        "STREAMCLI_HEADER",
        "STREAMCLI_SET",
        "STREAMCLI_API_KEY_CMD",
        "STREAMCLI_API_KEY_FILE",
    }
)


class Program(NamedTuple):
    """An executable and its definition: `name`, `input_schema`, usually `description`, and what else it printed."""

    path: str
    definition: dict[str, Any]


def declared(text: bytes, source: str) -> list[dict[str, Any]]:
    """The definitions in the text of a file: a JSON array of them, one alone, or `{"tools": [...]}`, each as it stands.

    A definition has a `type` of the API's own, or a `name` and an `input_schema`. Messages call the text `source`.
    Raises UsageError, with the entry's number, for anything else.
    """
    value = json_value(text, source)
    if isinstance(value, dict):
        value = value["tools"] if isinstance(value.get("tools"), list) else [value]
    if not isinstance(value, list):
        raise UsageError(f"{source} holds no tools: it needs to be an object or an array of objects")
    for number, entry in enumerate(value, 1):
        why = _fault_of(entry)
        if why:
            raise UsageError(f"{source}: tool {number} {why}")
    return value


def _fault_of(entry: Any) -> str:
    if not isinstance(entry, dict):
        return "is not an object"
    kind, name = entry.get("type"), entry.get("name")
    if isinstance(kind, str) and kind != "custom":
        return ""
    if not isinstance(name, str) or not name:
        return "has neither a name nor a type"
    return "" if isinstance(entry.get("input_schema"), dict) else f"({name}) needs an object as its input_schema"


def clean_environment(environment: Mapping[str, str], secrets: Iterable[str]) -> dict[str, str]:
    """The environment for a program that must not know a key: without the variables that are one or lead to one.

    A value that merely holds a secret stays, as a PATH may hold a key that is a word.
    """
    hidden = set(secrets) - {""}
    return {
        name: value
        for name, value in environment.items()
        if name not in _SECRET_VARIABLES and split_scheme(value.strip())[1] not in hidden
    }


def described(paths: Sequence[str], *, environment: Mapping[str, str], timeout: float | None) -> list[Program]:
    """What each program says of itself; all are asked at the same time.

    A path is found as a shell finds a command: one with a slash in it is used as it is, one without is looked for on
    the PATH of `environment` and not in the current directory. `timeout` is in seconds, None for no timeout. Raises
    UsageError, naming the program, if one cannot be run or prints no definition that can be sent.
    """
    located = [_located(path, environment) for path in paths]
    jobs = [Job((path, "--describe"), b"") for path in located]
    ends = run(jobs, environment=environment, timeout=timeout, max_bytes=MAX_BYTES)
    programs = [Program(path, _definition(path, end)) for path, end in zip(located, ends, strict=True)]
    owners: dict[str, str] = {}
    for path, definition in programs:
        name = definition["name"]
        if name in owners:
            raise UsageError(f"the tools {owners[name]} and {path} have the same name, {name}: rename one")
        owners[name] = path
    return programs


def _located(path: str, environment: Mapping[str, str]) -> str:
    if "/" not in path:
        found = shutil.which(path, path=environment.get("PATH", os.defpath))
        if found is None:
            here = f"; use {shlex.quote(f'./{path}')} for the one here" if path and os.path.exists(path) else ""
            raise UsageError(f"there is no tool {path or '(without a name)'} on PATH{here}")
        return found
    if not os.path.exists(path):
        raise UsageError(f"there is no tool {path}")
    if os.path.isdir(path):
        raise UsageError(f"the tool {path} is a directory")
    if not os.access(path, os.X_OK):
        raise UsageError(f"the tool {path} is not executable: chmod +x {shlex.quote(path)}")
    return path


def _definition(path: str, end: End) -> dict[str, Any]:
    why = end.fault
    if not why and end.status:
        said = " ".join(_tail(end.errors).split())
        why = f"--describe {_ending(end.status)}{said and f': {said}'}"
    if why:
        raise UsageError(f"the tool {path} cannot describe itself: {why}")
    definition = object_in(end.output, loads_exact)
    if definition is None:
        raise UsageError(f"the tool {path} cannot describe itself: --describe printed no JSON object")
    name = definition.get("name")
    if not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise UsageError(f"the tool {path} needs a name of 1 to 128 letters, digits, _ and -, not {name!r}")
    if not isinstance(definition.get("input_schema"), dict):
        raise UsageError(f"the tool {path} needs an object as its input_schema")
    return definition


def results(
    calls: Sequence[Mapping[str, Any]],
    programs: Iterable[Program],
    *,
    environment: Mapping[str, str],
    timeout: float | None,
    max_bytes: int = MAX_BYTES,
    may_run: Callable[[str, bytes], bool] = lambda *_: True,
) -> list[dict[str, Any]]:
    """The `tool_result` block of each `tool_use` block, in their order; the calls run at the same time.

    The content is always text: what the program printed, without the final newline, or "(no output)". It is an error
    if the program failed (then it is the end of its standard error), took longer than `timeout` seconds (None: no
    timeout), printed more than `max_bytes`, or is not there, or if `may_run` says no, which is asked with the name and
    the input of each call before any program runs. Raises ToolError if an input cannot be written as JSON.
    """
    by_name = {program.definition["name"]: program for program in programs}
    faults = [_fault_of_call(call, by_name) for call in calls]
    inputs = {place: _input(call) for place, call in enumerate(calls) if not faults[place]}
    for place, given in inputs.items():
        faults[place] = "" if may_run(calls[place]["name"], given) else _DECLINED
    jobs = {
        place: Job((by_name[calls[place]["name"]].path,), given) for place, given in inputs.items() if not faults[place]
    }
    ended = run(list(jobs.values()), environment=environment, timeout=timeout, max_bytes=max_bytes)
    ends = dict(zip(jobs, ended, strict=True))
    return [_result(call, ends.get(place) or End(fault=faults[place])) for place, call in enumerate(calls)]


def _fault_of_call(call: Mapping[str, Any], by_name: Mapping[str, Program]) -> str:
    """Why a call cannot be run at all, in words for the model; "" where it can."""
    if call["name"] not in by_name:
        return f"there is no tool {call['name']}"
    if "partial_json" not in call:
        return ""
    try:
        loads_exact(call["partial_json"].encode())
    except ValueError as fault:
        return f"the input is not complete JSON: {reason(fault)}: {call['partial_json'][-_TAIL:]}"
    return "the input is not a JSON object"


def _input(call: Mapping[str, Any]) -> bytes:
    try:
        return dumps(call.get("input", {})) + b"\n"  # a line, because `read` in a shell wants one
    except ValueError as fault:
        raise ToolError(f"the input of tool {call['name']} cannot be written as JSON: {fault}") from None


def _result(call: Mapping[str, Any], end: End) -> dict[str, Any]:
    if end.fault or end.status:
        content = end.fault or _tail(end.errors) or _tail(end.output) or _ending(end.status)
    else:
        content = end.output.decode("utf-8", "replace").removesuffix("\n")
    block = {
        "type": "tool_result",
        "tool_use_id": call["id"],
        # The API rejects blank text in some places and does not say in which.
        "content": content if content.strip() else "(no output)",
    }
    if end.fault or end.status:
        block["is_error"] = True
    if call.get("toolset_name") is not None:
        block["toolset_name"] = call["toolset_name"]
    return block


def _tail(data: bytes) -> str:
    return data.decode("utf-8", "replace").strip()[-_TAIL:]


def _ending(status: int) -> str:
    return f"ended by {_signal_name(-status)}" if status < 0 else f"exited with status {status}"


def _signal_name(number: int) -> str:
    return next((known.name for known in signal.Signals if known == number), f"signal {number}")
