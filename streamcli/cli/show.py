"""A request or the settings in force in, bytes that show them out, every secret hidden.

Contract: nothing is sent and nothing is changed. What `as_curl` returns runs as it is and takes the key from the
environment; its body is not searched for secrets.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from typing import TYPE_CHECKING, Any

from streamcli.output.terminal import one_line
from streamcli.protocol import request as requests
from streamcli.protocol.jsontext import dumps, loads_exact
from streamcli.protocol.request import is_secret, without_secrets

from .args import OPTIONS, OUTPUT_FORMATS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from streamcli.protocol.request import Endpoint, Request

    from .args import Args

_MODES = frozenset({"show_config", "config", "profile"})


def dry_run(request: Request) -> bytes:
    """The request as one JSON object, every secret hidden."""
    headers = without_secrets(request.headers.items())
    body = _without_tokens(loads_exact(request.body))
    return dumps({"method": request.method, "url": request.url, "headers": headers, "body": body}) + b"\n"


def _without_tokens(value: Any) -> Any:
    """A body in which the tokens for other servers are hidden."""
    if isinstance(value, list):
        return [_without_tokens(item) for item in value]
    if isinstance(value, dict):
        return {key: "***" if key == "authorization_token" else _without_tokens(item) for key, item in value.items()}
    return value


def as_curl(request: Request, endpoint: Endpoint, args: Args) -> bytes:
    """The request as a shell command that runs as it is and takes the key from the environment."""
    lines = [f"curl -sSN -X {request.method} {shlex.quote(request.url)}"]
    way = {"--proxy": _hidden("proxy", args.proxy), "--cacert": args.ca_file}
    lines += [f"{option} {shlex.quote(value)}" for option, value in way.items() if value]
    for name, value in request.headers.items():
        if is_secret(name):
            prefix = "Bearer " if value.startswith("Bearer ") else ""
            variable = f'"${_variable(name, endpoint)}"'
            plain = re.fullmatch(r"[\w-]+", name)
            head = f"{name}: {prefix}"
            lines.append(f'-H "{head}{variable[1:]}' if plain else f"-H {shlex.quote(head)}{variable}")
        else:
            lines.append(f"-H {shlex.quote(f'{name}: {value}')}")
    lines.append("--data-binary @- <<'JSON'")
    return " \\\n  ".join(lines).encode() + b"\n" + request.body + b"\nJSON\n"


def _variable(name: str, endpoint: Endpoint) -> str:
    """The environment variable for the secret in a header: the one that it came from, if that is known."""
    variables = {"x-api-key": "ANTHROPIC_API_KEY", "authorization": "ANTHROPIC_AUTH_TOKEN"}
    if endpoint.credential and name == endpoint.credential.header[0]:
        for variable in variables.values():
            if os.environ.get(variable, "").strip() == endpoint.credential.secret:
                return variable
    return variables.get(name) or re.sub(r"\W", "_", name).upper()


def settings(args: Args, environment: Mapping[str, str]) -> bytes:
    """The settings in force, in the form of config.toml, each line with the place where it was set."""
    lines = [f"{key} = {value}  # {one_line(origin)}\n" for key, value, origin in _settings(args, environment)]
    return "".join(lines).encode("utf-8", "backslashreplace")


def _settings(args: Args, environment: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    ambient = _ambient(args, environment)
    for option in OPTIONS:
        name = option.name or ""
        key = next(opt[2:] for opt in option.opts if opt.startswith("--"))
        value = args.output_format == name if name in OUTPUT_FORMATS else getattr(args, name)
        origin = args.origins[name]
        value, origin = ambient.get(name, (value, origin))
        if name == "fail_on":
            value = ",".join(sorted(value)) or None
        if value in (None, ()) or (value in ("", False) and origin == "default"):
            continue
        if origin in {"environment", "command line"} and name in _MODES:
            continue
        yield key, _toml(_hidden(name, value)), f"STREAMCLI_{name.upper()}" if origin == "environment" else origin
    for variable in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_CUSTOM_HEADERS"):
        if environment.get(variable, "").strip():
            yield f"# {variable}", '"***"', "environment"


def _ambient(args: Args, environment: Mapping[str, str]) -> dict[str, tuple[Any, str]]:
    """The settings that come from variables of other programs, or are our own defaults, because no option wins."""
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
    """A value as it may be shown: without what is or may be a secret."""
    if name == "header":
        return [_hidden_line(line, ": ") for line in value]
    if name == "set":
        return [_hidden_line(line, "=") for line in value]
    if name in {"base_url", "proxy"} and value:
        return re.sub(r"\?.*", "?***", re.sub(r"^(\w+://)?.*@", r"\1***@", value))
    return "***" if name == "api_key_cmd" and value else value  # it may hold the key itself


def _hidden_line(line: str, between: str) -> str:
    name, mark, value = line.partition(between.strip())
    if not mark:
        return "***"
    is_hidden = is_secret(line) or without_secrets([(name, value.strip())])[name] == "***"
    return f"{name}{between}***" if is_hidden else line


def _toml(value: Any) -> str:
    """A value as TOML. JSON is TOML for strings, numbers, booleans and lists, but DEL and C1 must be escaped."""
    text = json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
    return re.sub("[\x7f-\x9f]", lambda match: f"\\u{ord(match[0]):04x}", text)
