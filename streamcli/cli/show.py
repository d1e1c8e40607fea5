"""A request or the settings in force in, bytes that show them out, every secret hidden.

Contract: nothing is sent and nothing is changed. What `as_curl` gives runs as it is, the key taken from the
environment. Source: design.md section 2.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from streamcli import request as requests
from streamcli.jsontext import dumps, loads_exact
from streamcli.request import is_secret, without_secrets

from .args import FORMS, OPTIONS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from streamcli.request import Endpoint, Request

    from .args import Args

_MODES = frozenset({"show_config", "config", "profile"})


def dry_run(request: Request) -> bytes:
    """The request as one JSON object, every secret hidden."""
    headers = without_secrets(request.headers.items())
    shown = {"method": request.method, "url": request.url, "headers": headers, "body": loads_exact(request.body)}
    return dumps(shown) + b"\n"


def as_curl(request: Request, endpoint: Endpoint) -> bytes:
    """The request as a shell command that runs as it is, the key taken from the environment."""
    lines = [f"curl -sSN -X {request.method} {shlex.quote(request.url)}"]
    for name, value in request.headers.items():
        if is_secret(name):
            prefix = "Bearer " if value.startswith("Bearer ") else ""
            lines.append(f'-H "{name}: {prefix}${_variable(name, endpoint)}"')
        else:
            lines.append(f"-H {shlex.quote(f'{name}: {value}')}")
    lines.append("--data-binary @- <<'JSON'")
    return " \\\n  ".join(lines).encode() + b"\n" + request.body + b"\nJSON\n"


def _variable(name: str, endpoint: Endpoint) -> str:
    """The environment variable that stands for the secret in a header: the one it came from, if that is known."""
    variables = {"x-api-key": "ANTHROPIC_API_KEY", "authorization": "ANTHROPIC_AUTH_TOKEN"}
    if endpoint.credential and name == endpoint.credential.header[0]:
        for variable in variables.values():
            if os.environ.get(variable, "").strip() == endpoint.credential.secret:
                return variable
    return variables.get(name) or re.sub(r"\W", "_", name).upper()


def settings(args: Args, environment: Mapping[str, str]) -> bytes:
    """What is in force, as config.toml would say it, each line with the place where it was set."""
    lines = [f"{key} = {value}  # {origin}" for key, value, origin in _settings(args, environment)]
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace")


def _settings(args: Args, environment: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    ambient = _ambient(args, environment)
    for option in OPTIONS:
        name = option.name or ""
        key = next(opt[2:] for opt in option.opts if opt.startswith("--"))
        value = args.form == name if name in FORMS else getattr(args, name)
        origin = args.origins[name]
        value, origin = ambient.get(name, (value, origin))
        if name == "fail_on":
            value = ",".join(sorted(value)) or None
        if value in (None, (), "", False) and origin == "default":
            continue
        if origin in {"environment", "command line"} and name in _MODES:
            continue
        yield key, _toml(_hidden(name, value)), f"STREAMCLI_{name.upper()}" if origin == "environment" else origin
    for variable in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_CUSTOM_HEADERS"):
        if environment.get(variable, "").strip():
            yield f"# {variable}", '"***"', "environment"


def _ambient(args: Args, environment: Mapping[str, str]) -> dict[str, tuple[Any, str]]:
    """What the variables of other programs and our own defaults decide where no option nearer to the user does."""
    found: dict[str, tuple[Any, str]] = {}
    usual = {
        "model": ("ANTHROPIC_MODEL", requests.DEFAULT_MODEL),
        "base_url": ("ANTHROPIC_BASE_URL", requests.DEFAULT_BASE_URL),
        "max_tokens": ("", requests.DEFAULT_MAX_TOKENS),
    }
    for name, (variable, default) in usual.items():
        if name == "base_url" and args.local is not None:
            continue
        if environment.get(variable) and not args.near(name):
            found[name] = environment[variable], variable
        elif getattr(args, name) is None:
            found[name] = default, "default"
    return found


def _hidden(name: str, value: Any) -> Any:
    if name == "api_key_cmd" and value:
        return "***"  # it may hold the key itself
    if name == "header":
        return [f"{line.partition(':')[0]}: ***" if is_secret(line.partition(":")[0]) else line for line in value]
    if name == "set":
        return [f"{line.partition('=')[0]}=***" if is_secret(line.partition("=")[0]) else line for line in value]
    if name == "proxy" and value and "@" in value:
        return value.replace(urlsplit(value).netloc.rpartition("@")[0], "***") if "://" in value else "***"
    return value


def _toml(value: Any) -> str:
    """JSON of texts, numbers, truths and lists of texts is TOML."""
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
