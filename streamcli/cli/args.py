"""argv, STREAMCLI_* variables and the configuration in, `Args` out.

Contract: options are checked one by one and against each other. Nothing but the configuration is read here, and only
click and the standard library are imported, so that --help costs no more than click does. Every option is one entry in
GROUPS, and a test holds the man page to that table.
"""

from __future__ import annotations

import itertools
import math
import re
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import click
from click.core import ParameterSource

from streamcli.version import __version__

from . import config

if TYPE_CHECKING:
    from collections.abc import Mapping

OUTPUT_FORMATS = ("events", "message", "summary", "snapshots", "sse")


class Args(NamedTuple):
    """What was asked for. Times are in seconds, prices for a million; `origins` names the place where each was set."""

    prompt: tuple[str, ...]
    output_format: str
    file: tuple[str, ...]
    attach: tuple[str, ...]
    conversation: str | None
    ignore_stdin: bool
    stdin_timeout: float
    body: str | None
    model: str | None
    fallback_model: tuple[str, ...]
    system: str | None
    system_file: str | None
    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    stop: tuple[str, ...]
    thinking: str | None
    effort: str | None
    schema: str | None
    cache: str | None
    beta: tuple[str, ...]
    set: tuple[str, ...]
    tools: str | None
    tool: tuple[str, ...]
    tool_choice: str | None
    max_turns: int
    tool_timeout: float
    confirm: bool
    extract: bool
    show_thinking: bool
    show_sources: bool
    progress: bool
    sanitize: str
    buffer: int | None
    pace: float | None
    usage: bool
    usage_to: str | None
    events_to: str | None
    output: str | None
    record: str | None
    replay: str | None
    replay_speed: float
    batch: str | None
    lines: bool
    jobs: int
    max_total_tokens: int | None
    unordered: bool
    resume: bool
    retry_errors: bool
    offload: bool
    cancel: bool
    base_url: str | None
    local: str | None
    api_key_file: str | None
    api_key_cmd: str | None
    auth: str | None
    api_version: str | None
    header: tuple[str, ...]
    connect_timeout: float
    idle_timeout: float
    timeout: float | None
    retries: int
    proxy: str | None
    ca_file: str | None
    strict: bool
    max_event_bytes: int
    allow_http: bool
    fail_on: frozenset[str]
    error_format: str
    dry_run: bool
    as_curl: bool
    count_tokens: bool
    models: bool
    config: str | None
    profile: str | None
    show_config: bool
    verbose: bool
    quiet: bool
    prices: Mapping[str, Mapping[str, float]]
    origins: Mapping[str, str]

    def near(self, name: str) -> bool:
        """Whether the option was set by the command line or a STREAMCLI_ variable, which win over everything else."""
        return self.origins[name] in config.NEAR


class Number(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.5
    """A finite number from `least` to `most`; click's own types accept nan and inf."""

    name = "number"

    def __init__(self, kind: type[int] | type[float], least: float = 0, most: float = math.inf) -> None:
        self._kind = kind
        self._least = least
        self._most = most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """`value` as a number; click turns the failure into a usage error."""
        try:
            number = self._kind(value)
        except (ValueError, OverflowError):
            number = None
        if number is None or (isinstance(value, float) and number != value):  # nan, or a fraction in the configuration
            self.fail(f"{value!r} is not a {'whole ' if self._kind is int else ''}number", param, ctx)
        if not self._least <= number <= self._most or number == math.inf:
            self.fail(f"{value!r} is out of range", param, ctx)
        return number


class Thinking(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.5
    """How the model thinks: "adaptive", "off" or a number of tokens."""

    name = "thinking"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """`value`, checked."""
        if not re.fullmatch(r"adaptive|off|[1-9][0-9]{0,17}", str(value)):
            self.fail(f"{value!r} is neither adaptive, off nor a number of tokens", param, ctx)
        return str(value)


class Texts(click.types.StringParamType):
    """Text that may be given several times. A variable holds one a line, because a text may have blanks in it."""

    def split_envvar_value(self, rv: str) -> list[str]:
        """The lines of a variable."""
        return [line.removesuffix("\r") for line in rv.split("\n") if line.strip("\r")]


class Option(click.Option):
    """An option whose variable may end in what an editor or a file leaves there: white space around it is left out."""

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        """The variable's value, None where it is unset or blank."""
        value = super().resolve_envvar_value(ctx)
        return value if self.multiple or value is None else value.strip() or None


# A system call can wait some 24 days; 64 bits are the largest integers that every JSON parser takes.
_SECONDS, _COUNT = Number(float, most=1e6), Number(int, most=2**63 - 1)
_SANITIZE = click.Choice(["auto", "always", "never"])
_SOME, _MANY = Number(int, least=1, most=2**31 - 1), Number(int, least=1, most=2**63 - 1)


def _option(*names: str, metavar: str | None = None, help: str, **settings: Any) -> click.Option:  # noqa: A002
    if settings.get("multiple"):
        settings["type"] = Texts()
    return Option(names, metavar=metavar, help=help, **settings)


def _flag(*names: str, help: str, default: bool = False) -> click.Option:  # noqa: A002 - click's word
    return Option(names, is_flag=True, default=default, help=help)


def _configure(context: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Once --config and --profile are both known, take the defaults of all other options from the configuration."""
    context.meta[param.name] = value
    if {"config", "profile"} <= context.meta.keys() and not context.resilient_parsing:
        layers = config.layers(context.meta["config"], context.meta["profile"], OPTIONS, EXCLUSIVE)
        context.default_map = layers.values
        context.meta["layers"] = layers
    return value


_EARLY: dict[str, Any] = {"is_eager": True, "callback": _configure}
_MESSAGE = "The final message as JSON."
_CACHE = "Mark what requests share for the prompt cache."

GROUPS: dict[str, list[click.Option]] = {
    "Input": [
        _option("-f", "--file", multiple=True, metavar="PATH", help="Text to put in front of the prompt."),
        _option("-a", "--attach", multiple=True, metavar="PATH|URL", help="An image, a PDF or a text file."),
        _option("-c", "--conversation", metavar="FILE", help="Go on with the conversation in FILE, and add to it."),
        _flag("-I", "--ignore-stdin", help="Do not read standard input."),
        _option("--stdin-timeout", type=_SECONDS, default=60, metavar="S", help="For its first byte: 60; 0: none."),
        _option("--body", metavar="FILE", help="Request JSON to start from; - is standard input."),
    ],
    "Model": [
        _option("-m", "--model", metavar="NAME", help="The model to use."),
        _option("--fallback-model", multiple=True, metavar="NAME", help="The model to ask where that one fails."),
        _option("-s", "--system", metavar="TEXT", help="The system prompt."),
        _option("--system-file", metavar="PATH", help="The system prompt, from a file."),
        _option("--max-tokens", type=_COUNT, metavar="N", help="The most tokens of an answer: 8192."),
        _option("--temperature", type=Number(float), metavar="X", help="Sampling temperature."),
        _option("--top-p", type=Number(float), metavar="X", help="Nucleus sampling."),
        _option("--top-k", type=_COUNT, metavar="N", help="Sample from the N most likely tokens."),
        _option("--stop", multiple=True, metavar="TEXT", help="Stop when the model writes this."),
        _option("--thinking", type=Thinking(), metavar="adaptive|off|N", help="Whether to think; N: at most N tokens."),
        _option("--effort", metavar="LEVEL", help="low, medium, high, xhigh or max."),
        _option("--schema", metavar="FILE|JSON", help="Ask for JSON of this schema."),
        _option("--cache", type=click.Choice(["5m", "1h"]), metavar="[=1h]", help=_CACHE),
        _option("--beta", multiple=True, metavar="NAME", help="Turn on a beta feature."),
        _option("--set", multiple=True, metavar="KEY=VALUE", help="Any field of the request, as JSON or text."),
    ],
    "Tools": [
        _option("--tools", metavar="FILE", help="Tools to declare; a call ends the run."),
        _option("-T", "--tool", multiple=True, metavar="PROGRAM", help="A program to run when the model calls it."),
        _option("--tool-choice", metavar="auto|any|none|NAME", help="Whether a tool must be called, or which."),
        _option("--max-turns", type=_SOME, default=10, metavar="N", help="The most requests: 10."),
        _option("--tool-timeout", type=_SECONDS, default=60, metavar="S", help="For each call: 60; 0: none."),
        _flag("--confirm", help="Ask on the terminal before a tool is run."),
    ],
    "Output format, one of": [
        _flag("--events", help="Each event's JSON unchanged, one a line."),
        _option("--message", "--json", is_flag=True, envvar=["STREAMCLI_MESSAGE", "STREAMCLI_JSON"], help=_MESSAGE),
        _flag("--summary", help="A summary, one key: value a line."),
        _flag("--snapshots", help="The message so far, after each event, as JSON lines."),
        _flag("--sse", help="The bytes of the event stream."),
    ],
    "Output": [
        _option("-o", "--output", metavar="FILE", help="Write to FILE, which appears when it is complete."),
        _flag("-x", "--extract", help="Only the last fenced block of the text."),
        _flag("--show-thinking", help="The model's thinking, on standard error."),
        _flag("--show-sources", help="What the answer cites, on standard error."),
        _flag("--progress", help="Tokens, rate and time on standard error, if it is a terminal."),
        _option(
            "--sanitize", type=_SANITIZE, default="auto", metavar="WHEN", help="Show controls: auto, always or never."
        ),
        _option("--buffer", type=_SOME, metavar="N", help="Write text in sentences or pieces of N characters."),
        _option("--pace", type=_SECONDS, metavar="S", help="Wait S seconds between two pieces of text."),
        _flag("-u", "--usage", help="Tokens and times, on a line of standard error."),
        _option("--usage-to", metavar="FILE", help="The summary as JSON, to a file or /dev/fd/N."),
        _option("--events-to", metavar="FILE", help="As --events, to a file or /dev/fd/N."),
    ],
    "Tape": [
        _option("--record", metavar="FILE", help="Record the HTTP traffic in FILE, secrets hidden."),
        _option("--replay", metavar="FILE", help="Play a recording: no network, no key, no prompt."),
        _option("--replay-speed", type=_SECONDS, default=0, metavar="X", help="1 as recorded, 2 twice as fast, 0 now."),
    ],
    "Batch": [
        _option("--batch", metavar="FILE", help="A request on each line of FILE, a result on each line of the output."),
        _flag("--lines", help="Each line of FILE is a prompt, not JSON."),
        _option("-j", "--jobs", type=_SOME, default=8, metavar="N", help="How many at a time: 8."),
        _option("--max-total-tokens", type=_MANY, metavar="N", help="Start no line once so many were used."),
        _flag("--unordered", help="Write results as they come, not in order."),
        _flag("--resume", help="Go on with the output of a stopped run."),
        _flag("--retry-errors/--no-retry-errors", default=True, help="With --resume, ask failed lines too (default)."),
        _flag("--offload", help="Use the Message Batches API: cheaper, within a day."),
        _flag("--cancel", help="With --offload: cancel what is running there."),
    ],
    "Connection": [
        _option("--base-url", metavar="URL", help="The base URL of the Messages API."),
        _option("--local", metavar="[MODEL.gguf]", help="Run a model on this machine and use it."),
        _option("--api-key-file", metavar="PATH", help="A file that holds the key."),
        _option("--api-key-cmd", metavar="COMMAND", help="A shell command that prints the key."),
        _option("--auth", type=click.Choice(["x-api-key", "bearer"]), help="The header that the key goes out in."),
        _option("--api-version", metavar="DATE", help="The anthropic-version header."),
        _option("-H", "--header", multiple=True, metavar="'NAME: VALUE'", help="A header to send."),
        _option("--connect-timeout", type=_SECONDS, default=5, metavar="S", help="To connect, with TLS: 5; 0: none."),
        _option("--idle-timeout", type=_SECONDS, default=90, metavar="S", help="Between two reads: 90; 0: none."),
        _option("--timeout", type=_SECONDS, metavar="S", help="For each request, retries included: none."),
        _option("--retries", type=_COUNT, default=2, metavar="N", help="Further attempts: 2."),
        _option("--proxy", metavar="URL", help="A proxy, instead of the environment's."),
        _option("--ca-file", metavar="PATH", help="Certificates to trust, instead of the usual ones."),
        _flag("--strict", help="Fail at the first deviation from the documented event stream."),
        _option("--max-event-bytes", type=_COUNT, default=1 << 26, metavar="N", help="Of one event: 64 MiB; 0: any."),
        _flag("--allow-http", help="Let a key go to another machine over plain http."),
    ],
    "Other": [
        _option("--fail-on", metavar="LIST", default="refusal", help="Stop reasons that end with status 9: refusal."),
        _option("--error-format", type=click.Choice(["text", "json"]), default="text", help="How errors are printed."),
        _flag("--dry-run", help="Print the request as JSON, key hidden, and send nothing."),
        _flag("--as-curl", help="Print the request as a curl command, and send nothing."),
        _flag("--count-tokens", help="Print how many tokens the request has, and send no prompt."),
        _flag("--models", help="Print the available models; with --json all about them."),
        _option("--config", metavar="FILE", help="Another configuration file than the usual one.", **_EARLY),
        _option("--profile", metavar="NAME", help="The table [profile.NAME] of the configuration.", **_EARLY),
        _flag("--show-config", help="Print what is in force and where it was set."),
        _flag("-v", "--verbose", help="Request id, times and rate limits on standard error."),
        _flag("-q", "--quiet", help="No notes on standard error; errors stay."),
    ],
}
OPTIONS = [option for options in GROUPS.values() for option in options]


class Command(click.Command):
    """A command whose --help has headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options under their headings, in the table's order."""
        grouped = {id(option) for option in OPTIONS}
        rest = [param for param in self.get_params(ctx) if id(param) not in grouped]
        for heading, options in GROUPS.items():
            shown = [*options, *(rest if heading == "Other" else ())]
            records = [option.get_help_record(ctx) for option in shown if isinstance(option, click.Option)]
            with formatter.section(heading):
                formatter.write_dl([record for record in records if record])


_MODES = ("batch", "count_tokens", "models", "show_config", "dry_run", "as_curl")
# Of these, what can be done with many requests as well.
_ALSO_OF_MANY = (("batch", "count_tokens"), ("batch", "dry_run"))
# Options for one answer that make no sense for many.
_ALONE = (
    "conversation",
    "tool",
    "fallback_model",
    "events_to",
    "record",
    "replay",
    "extract",
    "show_thinking",
    "show_sources",
    "progress",
    "buffer",
)

EXCLUSIVE = [
    ("system", "system_file"),
    ("api_key_file", "api_key_cmd"),
    ("local", "base_url"),
    ("replay", "local"),
    ("replay", "record"),
    *(("replay", name) for name in ("conversation", "count_tokens", "models", "dry_run", "as_curl")),
    *(pair for pair in itertools.combinations(_MODES, 2) if pair not in _ALSO_OF_MANY),
    *(("batch", name) for name in (*_ALONE, "pace", "usage")),
    *(("offload", name) for name in ("local", "unordered", "count_tokens", "max_total_tokens")),
    ("count_tokens", "max_total_tokens"),
    *itertools.combinations(OUTPUT_FORMATS, 2),
    *itertools.product(OUTPUT_FORMATS, ("extract", "buffer", "pace", "batch")),
    *itertools.product(set(OUTPUT_FORMATS) - {"message"}, ("count_tokens", "models")),
]
_MAY_BE_EMPTY = frozenset({"local", "system", "prompt"})
# Options that mean nothing without another one.
_NEEDS = [
    *((name, "batch") for name in ("lines", "unordered", "resume", "offload", "jobs", "max_total_tokens")),
    *((name, "output") for name in ("resume", "offload")),
    ("cancel", "offload"),
    ("confirm", "tool"),
]

_EPILOG = (
    "Exit status: 0 complete, 2 usage, 3 rejected, 4 authentication, 5 throttled or server error, 6 connection, "
    "7 timeout, 8 incomplete, 9 --fail-on or --max-total-tokens, 10 output, 11 tool or schema. More: man streamcli."
)


def command() -> click.Command:
    """The click command; invoking it returns `Args`."""
    # Not from STREAMCLI_VERSION or _HELP, which an image may hold for purposes of its own.
    asked: dict[str, Any] = {"is_flag": True, "is_eager": True, "expose_value": False, "allow_from_autoenv": False}
    return Command(
        "streamcli",
        params=[
            click.Argument(["prompt"], nargs=-1, metavar="[PROMPT]..."),
            *OPTIONS,
            click.Option(["--version"], help="Print the version.", callback=_version, **asked),
            # Versions of click differ in when they look at their own, and whether it has a variable.
            click.Option(["-h", "--help"], help="Show this message and exit.", callback=_help, **asked),
        ],
        add_help_option=False,
        callback=_collect,
        help="Send a prompt to a Messages endpoint and stream the answer to standard output.",
        epilog=_EPILOG,
        context_settings={"auto_envvar_prefix": "STREAMCLI"},
    )


def parse(argv: list[str]) -> Args | int:
    """`Args` from the command's arguments, or the exit status if it was --help or --version.

    Raises click.ClickException, of status 2, for what cannot be parsed.
    """
    result: Args | int = command().main(_with_values(argv), prog_name="streamcli", standalone_mode=False)
    return result


def _with_values(argv: list[str]) -> list[str]:
    """Give the options of config.BARE that have no value the one that this means: a prompt is never taken for one.

    Only the file of a model may be the word after --local.
    """
    words = list(argv)
    for place, word in enumerate(words):
        if word == "--":
            break
        bare = config.BARE.get(word.removeprefix("--")) if word.startswith("--") else None
        if bare is not None and not (word == "--local" and _names_model(words[place + 1 :])):
            words[place] = f"{word}={bare}"
    return words


def _names_model(following: list[str]) -> bool:
    return bool(following) and following[0].lower().endswith(".gguf")


def _version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        _print(ctx, f"streamcli {__version__}")


def _help(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        _print(ctx, ctx.get_help())


def _print(ctx: click.Context, text: str) -> None:
    if sys.stdout is None:  # it was closed when the process began; before 8.1.7 click did not expect that
        raise OSError
    click.echo(text, color=ctx.color)
    ctx.exit()


def _collect(**values: Any) -> Args:
    context = click.get_current_context()
    for name, value in values.items():
        if name not in _MAY_BE_EMPTY and (value == "" or (isinstance(value, tuple) and "" in value)):
            raise click.UsageError(f"{_long(name)} needs a value that is not empty")
    for pair in EXCLUSIVE:
        _choose(context, pair, values)
    asked = {name: values.pop(name) for name in OUTPUT_FORMATS}
    values["output_format"] = next((name for name, wanted in asked.items() if wanted), "text")
    for name, other in _NEEDS:
        if _rank(context, name) == _TYPED and not _is_given(values[other]):
            raise click.UsageError(f"{_long(name)} needs {_long(other)}")
    values["fail_on"] = _listed(values["fail_on"])
    return Args(**values, prices=context.meta["layers"].prices, origins=_origins(context))


def _listed(given: str) -> frozenset[str]:
    """The stop reasons of --fail-on."""
    words = frozenset(filter(None, given.replace(" ", "").split(",")))
    if not words or ("none" in words and len(words) > 1):
        raise click.UsageError("--fail-on needs stop reasons, comma-separated, or none")
    return words - {"none"}


# Where click found a value, in the order of config.ORIGINS: a later place wins over an earlier one.
_RANKS = (
    ParameterSource.DEFAULT,
    ParameterSource.DEFAULT_MAP,
    ParameterSource.ENVIRONMENT,
    ParameterSource.COMMANDLINE,
)
_TYPED = len(_RANKS) - 1


def _rank(context: click.Context, name: str) -> int:
    source = context.get_parameter_source(name)
    return _RANKS.index(source) if source in _RANKS else 0


def _is_given(value: Any) -> bool:
    return value is not None and value is not False and value != ()


def _long(name: str) -> str:
    return "--" + name.replace("_", "-")


def _choose(context: click.Context, pair: tuple[str, str], values: dict[str, Any]) -> None:
    """Of two options that exclude each other, drop the one that was set in the earlier place."""
    if not all(_is_given(values[name]) for name in pair):
        return
    far, near = sorted(pair, key=lambda name: _rank(context, name))
    if _rank(context, near) == _rank(context, far):
        raise click.UsageError(f"{_long(pair[0])} and {_long(pair[1])} exclude each other")
    not_given = {bool: False, tuple: ()}
    values[far] = not_given.get(type(values[far]))


def _origins(context: click.Context) -> dict[str, str]:
    layers: config.Layers = context.meta["layers"]
    names = [option.name or "" for option in OPTIONS]
    ranked = {name: config.ORIGINS[_rank(context, name)] for name in names}
    ranked["prices"] = config.FILE
    return {name: layers.origins.get(name, "") if rank == config.FILE else rank for name, rank in ranked.items()}
