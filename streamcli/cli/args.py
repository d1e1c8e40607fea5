"""argv, STREAMCLI_* and the configuration in, `Args` out: what was asked, checked for form and nothing more.

Contract: nothing is opened, read or looked up here but the configuration, and nothing but click and the standard
library is imported, so that --help costs no more than click does. Every option is one row of OPTIONS; the man page is
held to that table.
"""

from __future__ import annotations

import itertools
import math
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import click
from click.core import ParameterSource

from streamcli.version import __version__

from . import config

if TYPE_CHECKING:
    from collections.abc import Mapping

OUTPUT_FORMATS = ("events", "message", "summary", "snapshots", "sse")


class Args(NamedTuple):
    """What was asked. Times are in seconds; `origins` says of each option where it was set: one of config.ORIGINS."""

    prompt: tuple[str, ...]
    output_format: str
    file: tuple[str, ...]
    attach: tuple[str, ...]
    conversation: str | None
    ignore_stdin: bool
    stdin_timeout: float
    body: str | None
    model: str | None
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
    beta: tuple[str, ...]
    set: tuple[str, ...]
    tools: str | None
    tool: tuple[str, ...]
    tool_choice: str | None
    max_turns: int
    tool_timeout: float
    extract: bool
    show_thinking: bool
    progress: bool
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
    origins: Mapping[str, str]

    def near(self, name: str) -> bool:
        """Whether the option was set by the command line or a STREAMCLI_ variable, before which no other counts."""
        return self.origins[name] in config.NEAR


class Number(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.5
    """A finite number from `least` to `most`; click's own lets nan and inf through."""

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
        if number is None or (isinstance(value, float) and number != value):  # one of the configuration
            self.fail(f"{value!r} is no {'whole ' if self._kind is int else ''}number", param, ctx)
        if not self._least <= number <= self._most or number == math.inf:
            self.fail(f"{value!r} is out of range", param, ctx)
        return number


class Thinking(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.5
    """How to think: "adaptive", "off" or a number of tokens."""

    name = "thinking"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """`value`, checked."""
        if not re.fullmatch(r"adaptive|off|[1-9][0-9]{0,17}", str(value)):
            self.fail(f"{value!r} is neither adaptive, off nor a number of tokens", param, ctx)
        return str(value)


class Texts(click.types.StringParamType):
    """Text that may be given several times: in a variable, one a line, since a text may hold blanks."""

    def split_envvar_value(self, rv: str) -> list[str]:
        """The lines of a variable."""
        return [line.removesuffix("\r") for line in rv.split("\n") if line.strip("\r")]


class Option(click.Option):
    """An option whose variable may end in what an editor or a file leaves there: white space around it is left out."""

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        """The variable's value, None where it is unset or blank."""
        value = super().resolve_envvar_value(ctx)
        return value if self.multiple or value is None else value.strip() or None


# A system call waits at most some 24 days; a number of 64 bits is the longest that every reader of JSON knows.
_SECONDS, _COUNT = Number(float, most=1e6), Number(int, most=2**63 - 1)
_SOME = Number(int, least=1, most=2**31 - 1)


def _option(*names: str, metavar: str | None = None, help: str, **settings: Any) -> click.Option:  # noqa: A002
    if settings.get("multiple"):
        settings["type"] = Texts()
    return Option(names, metavar=metavar, help=help, **settings)


def _flag(*names: str, help: str, default: bool = False) -> click.Option:  # noqa: A002 - click's word
    return Option(names, is_flag=True, default=default, help=help)


def _configure(context: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Once --config and --profile are both known, what they name is the ground that every other option stands on."""
    context.meta[param.name] = value
    if {"config", "profile"} <= context.meta.keys() and not context.resilient_parsing:
        layers = config.layers(context.meta["config"], context.meta["profile"], OPTIONS, EXCLUSIVE)
        context.default_map = layers.values
        context.meta["layers"] = layers
    return value


_EARLY: dict[str, Any] = {"is_eager": True, "callback": _configure}


_MESSAGE = "The final message as JSON."

GROUPS: dict[str, list[click.Option]] = {
    "Input": [
        _option("-f", "--file", multiple=True, metavar="PATH", help="Text to put in front of the prompt."),
        _option("-a", "--attach", multiple=True, metavar="PATH|URL", help="An image, a PDF or a text to look at."),
        _option("-c", "--conversation", metavar="FILE", help="Go on with the conversation in FILE, and add to it."),
        _flag("-I", "--ignore-stdin", help="Do not read standard input."),
        _option("--stdin-timeout", type=_SECONDS, default=60, metavar="S", help="For its first byte: 60; 0: for ever."),
        _option("--body", metavar="FILE", help="Request JSON to start from; - is standard input."),
    ],
    "Model": [
        _option("-m", "--model", metavar="NAME", help="The model to ask."),
        _option("-s", "--system", metavar="TEXT", help="The system prompt."),
        _option("--system-file", metavar="PATH", help="The system prompt, from a file."),
        _option("--max-tokens", type=_COUNT, metavar="N", help="The answer's limit: 8192."),
        _option("--temperature", type=Number(float), metavar="X", help="Sampling temperature."),
        _option("--top-p", type=Number(float), metavar="X", help="Nucleus sampling."),
        _option("--top-k", type=_COUNT, metavar="N", help="Sample from the N likeliest tokens."),
        _option("--stop", multiple=True, metavar="TEXT", help="Stop where the model writes this."),
        _option("--thinking", type=Thinking(), metavar="adaptive|off|N", help="Whether to think; N: tokens at most."),
        _option("--effort", metavar="LEVEL", help="low, medium, high, xhigh or max."),
        _option("--schema", metavar="FILE|JSON", help="The answer is JSON of this schema."),
        _option("--beta", multiple=True, metavar="NAME", help="Ask for a beta feature."),
        _option("--set", multiple=True, metavar="KEY=VALUE", help="Any field of the request, dotted; JSON or text."),
    ],
    "Tools": [
        _option("--tools", metavar="FILE", help="Tools to declare; a call ends the run."),
        _option("-T", "--tool", multiple=True, metavar="PROGRAM", help="A program to run where the model calls it."),
        _option("--tool-choice", metavar="auto|any|none|NAME", help="Which tool must be called."),
        _option("--max-turns", type=_SOME, default=10, metavar="N", help="Requests at most: 10."),
        _option("--tool-timeout", type=_SECONDS, default=60, metavar="S", help="For each call: 60; 0: for ever."),
    ],
    "Output, one of": [
        _flag("--events", help="Each event's JSON unchanged, one a line."),
        _option("--message", "--json", is_flag=True, envvar=["STREAMCLI_MESSAGE", "STREAMCLI_JSON"], help=_MESSAGE),
        _flag("--summary", help="The final message's facts, key: value a line."),
        _flag("--snapshots", help="The message so far, one JSON a line."),
        _flag("--sse", help="The stream's bytes."),
    ],
    "Beside it": [
        _option("-o", "--output", metavar="FILE", help="Write to FILE, which appears only when it is whole."),
        _flag("-x", "--extract", help="Of the text, only the last fenced block."),
        _flag("--show-thinking", help="What the model thinks, on standard error."),
        _flag("--progress", help="Tokens, rate and time on standard error, if it is a terminal."),
        _option("--buffer", type=_SOME, metavar="N", help="Hold text until N characters or a sentence are there."),
        _option("--pace", type=_SECONDS, metavar="S", help="Wait so long between two pieces of text."),
        _flag("-u", "--usage", help="Tokens and times, one line on standard error."),
        _option("--usage-to", metavar="FILE", help="The same as JSON, to a file or /dev/fd/N."),
        _option("--events-to", metavar="FILE", help="As --events, to a file or /dev/fd/N."),
    ],
    "Tape": [
        _option("--record", metavar="FILE", help="Write what goes over the wire, secrets hidden, to FILE."),
        _option("--replay", metavar="FILE", help="Answer from a recording: no network, no key, no prompt."),
        _option(
            "--replay-speed", type=_SECONDS, default=0, metavar="X", help="1: as it was; 2: twice as fast; 0: at once."
        ),
    ],
    "Many prompts": [
        _option("--batch", metavar="FILE", help="A request on each line of FILE, a result on each line of the output."),
        _flag("--lines", help="Each line of it is a prompt, not JSON."),
        _option("-j", "--jobs", type=_SOME, default=8, metavar="N", help="So many at a time: 8."),
        _flag("--unordered", help="Results as they come, not in the order of the input."),
        _flag("--resume", help="Go on with the output of a run that was stopped."),
        _flag("--retry-errors/--no-retry-errors", default=True, help="With --resume, failed lines too (default)."),
        _flag("--offload", help="Through the Message Batches API: half the price, within a day."),
        _flag("--cancel", help="With --offload: cancel what runs there."),
    ],
    "Connection": [
        _option("--base-url", metavar="URL", help="Where the Messages API is."),
        _option("--local", metavar="[MODEL.gguf]", help="Run a model in this process and ask it."),
        _option("--api-key-file", metavar="PATH", help="A file that holds the key."),
        _option("--api-key-cmd", metavar="COMMAND", help="A shell command that prints the key."),
        _option("--auth", type=click.Choice(["x-api-key", "bearer"]), help="The header the key goes out in."),
        _option("--api-version", metavar="DATE", help="The anthropic-version header."),
        _option("-H", "--header", multiple=True, metavar="'NAME: VALUE'", help="A header to send."),
        _option("--connect-timeout", type=_SECONDS, default=5, metavar="S", help="To connect, TLS included: 5."),
        _option("--idle-timeout", type=_SECONDS, default=90, metavar="S", help="Between two reads: 90; 0: for ever."),
        _option("--timeout", type=_SECONDS, metavar="S", help="For each request, retries included; no limit."),
        _option("--retries", type=_COUNT, default=2, metavar="N", help="Further attempts: 2."),
        _option("--proxy", metavar="URL", help="Instead of the environment's."),
        _option("--ca-file", metavar="PATH", help="Certificates to trust instead of the usual ones."),
        _flag("--strict", help="Fail at the first deviation from the documented event stream."),
        _flag("--allow-http", help="Send a key over plain http to another machine."),
    ],
    "The rest": [
        _option("--fail-on", metavar="LIST", help="Stop reasons that end with status 9, comma-separated."),
        _option("--error-format", type=click.Choice(["text", "json"]), default="text", help="How errors are said."),
        _flag("--dry-run", help="Print the request as JSON, key hidden, and send nothing."),
        _flag("--as-curl", help="Print the request as a curl command, and send nothing."),
        _flag("--count-tokens", help="Print how many tokens the request has, and send no prompt."),
        _flag("--models", help="Print the models that there are; with --json all that is known of them."),
        _option("--config", metavar="FILE", help="Another configuration than config.toml.", **_EARLY),
        _option("--profile", metavar="NAME", help="The table [profile.NAME] of the configuration.", **_EARLY),
        _flag("--show-config", help="Print what is in force and where it was set."),
        _flag("-v", "--verbose", help="Request id, timings and limits on standard error."),
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
            shown = [*options, *(rest if heading == "The rest" else ())]
            records = [option.get_help_record(ctx) for option in shown if isinstance(option, click.Option)]
            with formatter.section(heading):
                formatter.write_dl([record for record in records if record])


_MODES = ("batch", "count_tokens", "models", "show_config", "dry_run", "as_curl")
# What goes beside one answer has no place beside many.
_ALONE = ("conversation", "tool", "events_to", "record", "replay", "extract", "show_thinking", "progress", "buffer")

EXCLUSIVE = [
    ("system", "system_file"),
    ("api_key_file", "api_key_cmd"),
    ("local", "base_url"),
    ("replay", "local"),
    ("replay", "record"),
    *(("replay", name) for name in ("conversation", "count_tokens", "models", "dry_run", "as_curl")),
    *itertools.combinations(_MODES, 2),
    *(("batch", name) for name in (*_ALONE, "pace", "usage")),
    *(("offload", name) for name in ("local", "unordered")),
    *itertools.combinations(OUTPUT_FORMATS, 2),
    *itertools.product(OUTPUT_FORMATS, ("extract", "buffer", "pace", "batch")),
    *itertools.product(set(OUTPUT_FORMATS) - {"message"}, ("count_tokens", "models")),
]
_MAY_BE_EMPTY = frozenset({"local", "system", "prompt"})
# An option that says nothing without the other.
_NEEDS = [
    *((name, "batch") for name in ("lines", "unordered", "resume", "offload", "jobs")),
    *((name, "output") for name in ("resume", "offload")),
    ("cancel", "offload"),
]

_EPILOG = (
    "Exit status: 0 complete, 2 usage, 3 rejected, 4 authentication, 5 overloaded, 6 connection, 7 timeout, "
    "8 incomplete, 9 --fail-on, 10 output, 11 tool or schema. More: man streamcli."
)


def command() -> click.Command:
    """The click command; invoking it returns `Args`."""
    version: dict[str, Any] = {"is_flag": True, "is_eager": True, "expose_value": False, "callback": _version}
    return Command(
        "streamcli",
        params=[
            click.Argument(["prompt"], nargs=-1, metavar="[PROMPT]..."),
            *OPTIONS,
            # Not from STREAMCLI_VERSION, which an image may hold for purposes of its own.
            click.Option(["--version"], help="Print the version.", allow_from_autoenv=False, **version),
        ],
        callback=_collect,
        help="Send a prompt to a Messages endpoint and stream the answer to standard output.",
        epilog=_EPILOG,
        context_settings={"auto_envvar_prefix": "STREAMCLI", "help_option_names": ["-h", "--help"]},
    )


def parse(argv: list[str]) -> Args | int:
    """`Args` from the words after the command's name, or the exit status where --help or --version was answered.

    Raises click.ClickException, of status 2, for what cannot be understood.
    """
    result: Args | int = command().main(_with_local_value(argv), prog_name="streamcli", standalone_mode=False)
    return result


def _with_local_value(argv: list[str]) -> list[str]:
    """--local takes a value only where the next word names a model file: no prompt is ever taken for one."""
    words = list(argv)
    for place, word in enumerate(words):
        if word == "--":
            break
        if word == "--local" and not _names_model(words[place + 1 :]):
            words[place] = "--local="
    return words


def _names_model(following: list[str]) -> bool:
    return bool(following) and following[0].lower().endswith(".gguf")


def _version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        click.echo(f"streamcli {__version__}")
        ctx.exit()


def _collect(**values: Any) -> Args:
    context = click.get_current_context()
    for name, value in values.items():
        if name not in _MAY_BE_EMPTY and (value == "" or (isinstance(value, tuple) and "" in value)):
            raise click.UsageError(f"{_long(name)} needs a value, and this one is empty")
    for pair in EXCLUSIVE:
        _choose(context, pair, values)
    asked = {name: values.pop(name) for name in OUTPUT_FORMATS}
    values["output_format"] = next((name for name, wanted in asked.items() if wanted), "text")
    for name, other in _NEEDS:
        if _rank(context, name) == _TYPED and not _is_given(values[other]):
            raise click.UsageError(f"{_long(name)} needs {_long(other)}")
    values["fail_on"] = frozenset(filter(None, (values["fail_on"] or "").replace(" ", "").split(",")))
    return Args(**values, origins=_origins(context))


# The further down, the nearer to the user.
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
    """Of two options that exclude each other, the one that was set nearer to the user wins."""
    if not all(_is_given(values[name]) for name in pair):
        return
    near, far = sorted(pair, key=lambda name: _rank(context, name), reverse=True)
    if _rank(context, near) == _rank(context, far):
        raise click.UsageError(f"{_long(pair[0])} and {_long(pair[1])} exclude each other")
    values[far] = {bool: False, tuple: ()}.get(type(values[far]))


def _origins(context: click.Context) -> dict[str, str]:
    layers: config.Layers = context.meta["layers"]
    names = [option.name or "" for option in OPTIONS]
    ranked = {name: config.ORIGINS[_rank(context, name)] for name in names}
    return {name: layers.origins.get(name, "") if rank == config.FILE else rank for name, rank in ranked.items()}
