"""The manual says what the command does: its options, statuses and formats, and its examples are what comes out."""

import json
import os
import pydoc
import re
import shutil
import signal
import subprocess
import tomllib
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import manual
import pytest
import server_table
import starter
from batches import BatchesServer
from faults_command import ask, environment, streamcli
from manual import PAGES, entries, items, prose, rows, sections, texts, values
from server import (
    MESSAGE_STOP,
    block_start,
    block_stop,
    delta,
    error_response,
    head,
    json_response,
    message_delta,
    message_start,
    ok,
    opening,
    text_delta,
    text_events,
)

from streamcli import errors
from streamcli.batch import limiter, offload, pool, results, state
from streamcli.batch.statistics import Statistics
from streamcli.cli import answer, batch, config, confirm, verdict
from streamcli.cli.args import OPTIONS, command
from streamcli.client import calls
from streamcli.network import proxy, timeouts
from streamcli.network import tape as tapes
from streamcli.output import price
from streamcli.protocol import body, deviations, exchange, message, request, retry, sse
from streamcli.turns import processes, signals, tools
from streamcli.version import __version__ as version

PAGE = PAGES[1]
OPTIONS_BY_NAME = {option.name: option for option in OPTIONS}
KEY = "sk-a-key-of-many-letters"
PARIS = ok(*text_events("Paris."))
CALL = ok(
    message_start(),
    block_start(type="tool_use", id="toolu_1", name="now", input={}),
    block_stop(),
    message_delta("tool_use"),
    MESSAGE_STOP,
)


def all_subclasses(cls):
    return {cls}.union(*map(all_subclasses, cls.__subclasses__()))


# streamcli(1)


def options_of_the_page():
    """The options that have an entry: `.It Fl f Ar path , Fl -file Ar path` has -f and --file."""
    entries = re.findall(r"^\.It (Fl .*)$", PAGE, re.MULTILINE)
    return {f"-{name}" for entry in entries for name in re.findall(r"Fl ([\w-]+)", entry)}


def options_of_the_command():
    names = [name for option in command().params for name in (*option.opts, *option.secondary_opts)]
    return {name for name in names if name.startswith("-")} | {"-h", "--help"}


def statuses_of_the_page():
    return {int(status) for status in re.findall(r"^\.It (\d+)$", sections(1)["EXIT STATUS"], re.MULTILINE)}


def test_every_option_is_in_the_page_and_no_other():
    assert options_of_the_page() == options_of_the_command()


def test_every_status_of_an_error_is_in_the_page_and_no_other():
    said_by_errors = {cls.exit_code for cls in all_subclasses(errors.StreamcliError)}
    assert statuses_of_the_page() == said_by_errors | {0, 9}


def test_every_variable_that_is_named_after_an_option_has_one():
    named = set(re.findall(r"STREAMCLI_([A-Z_]+)", "".join(PAGES.values()))) - {"LOCAL_MODEL"}
    assert named <= {option.name.upper() for option in command().params}


def test_every_option_that_another_page_names_exists():
    named = set(re.findall(r"\bFl (-[\w-]+|\w)\b", PAGES[5] + PAGES[7])) - {"-describe"}
    assert {f"-{name}" for name in named} <= options_of_the_command()


class Example(NamedTuple):
    """What the server says, a text of each request in its order, and what comes of it.

    `printed` begins standard output, and is "" if there is none; `left` are files, each with a text that it holds.
    """

    responses: list[bytes]
    asked: list[str]
    printed: str = ""
    left: Mapping[str, str] = MappingProxyType({})


def reply(text):
    return ok(*text_events(text))


BEFORE = {"change.diff": "+one\n", "letter.txt": "Seine", "photo.png": "\x89PNG\r\n\x1a\n", "question.txt": "Is it?"}
BEFORE["questions.txt"] = "One?\nTwo?\n"
EXAMPLES = {
    "First steps": Example([PARIS], ["France", "qwen3"], "Paris.Paris."),
    "Ask something": Example([PARIS], ["France"], "Paris."),
    "Ask about what another command prints": Example([PARIS], ["Filesystem"], "Paris."),
    "Ask about a file, and keep only a whole answer": Example([PARIS], ["+one"], left={"review.txt": "Paris."}),
    "Ask the same about many files": Example([PARIS], ["Seine", "Is it?", "Two?"], "Paris.Paris.Paris."),
    "Describe a picture": Example([PARIS], ["image/png"], "Paris."),
    "Get a field as JSON": Example([reply('{"city":"Paris"}')], ["json_schema"], "Paris\n"),
    "Get a script, and nothing around it": Example(
        [reply("So:\n```sh\ncp\n```\n")], ["backup"], left={"backup.sh": "cp\n"}
    ),
    "Go on with a conversation": Example([PARIS], ["Ada", "What is my name?"], "Paris.Paris."),
    "Let the model run a program": Example([CALL, PARIS], ["UTC", "tool_result"], "Paris."),
    "Make a prompt a program": Example([PARIS], ["Review this change."], "Paris."),
    "Text to the terminal, events and usage to files": Example(
        [PARIS], ["story"], "Paris.", {"events.jsonl": "message_stop", "usage.json": '"output_tokens":7'}
    ),
    "Ask many prompts, and go on after a break": Example([PARIS], ["?", "?"], left={"results.jsonl": "succeeded"}),
    "Try again later, but only if that can help": Example(
        [error_response(529, "overloaded_error", x_should_retry="false")], ["Is it?"], "try again later\n"
    ),
    "Record an answer, and replay it as text and as events": Example([PARIS], ["France"], "Paris.Paris.{"),
    "See what would be sent": Example([PARIS], [], "{"),
}


def script(title):
    """An example's commands; those that need a model are tried in tests/test_local.py."""
    lines = "".join(texts(1, title)).splitlines()
    return "".join(f"{line[2:]}\n" for line in lines if "--local" not in line)


def test_each_example_of_the_page_is_run_here():
    examples = re.findall(r"^\.Ss (.*)$", PAGE.partition("\n.Sh EXAMPLES\n")[2], re.MULTILINE)
    assert list(EXAMPLES) == ["First steps", *(title for title in examples if script(title))]


@pytest.mark.parametrize("title", EXAMPLES)
def test_an_example_runs_as_it_stands(title, server, tmp_path):
    commands = script(title).replace("http://localhost:11434", server.url)
    if "jq" in commands and not shutil.which("jq"):
        pytest.skip("jq is not installed")
    for name, text in BEFORE.items():
        (tmp_path / name).write_bytes(text.encode("latin-1"))
    example = EXAMPLES[title]
    server.responses = list(example.responses)
    variables = {"PATH": f"{starter.folder()}:{os.environ['PATH']}", "ANTHROPIC_BASE_URL": server.url}
    ended = subprocess.run(
        ["sh", "-c", commands], cwd=tmp_path, env=variables, stdin=subprocess.DEVNULL, capture_output=True, check=True
    )
    asked = [json.dumps(request.json) for request in server.requests]
    assert len(asked) == len(example.asked), ended.stderr.decode()
    assert all(text in body for text, body in zip(example.asked, asked, strict=True))
    said = ended.stdout.decode()
    assert said.startswith(example.printed) if example.printed else said == ""
    assert all(text in (tmp_path / name).read_text() for name, text in example.left.items())


def test_the_library_of_the_example_streams(server, monkeypatch, capsys):
    server.responses = [PARIS]
    monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
    exec(texts(1, "PYTHON LIBRARY")[0], {})
    assert capsys.readouterr().out == "Paris."


def test_the_objects_that_the_page_names_explain_themselves():
    names = re.findall(r"^\.Ic pydoc (\S+)", sections(1)["PYTHON LIBRARY"], re.MULTILINE)
    assert len(names) == 3
    assert all(pydoc.locate(name).__doc__ for name in names)


PROGRAM = "".join(path.read_text() for path in (manual.FOLDER.parent / "streamcli").rglob("*.py"))


def test_the_files_that_are_used_unasked_are_those_of_the_page(monkeypatch):
    folders = {"XDG_CONFIG_HOME": "/of settings", "XDG_CACHE_HOME": "/of caches"}
    usual = {config.usual_path(folders), config.models_path(folders), confirm._TERMINAL}
    beside = re.findall(r'"(\.?)\{[\w.]+\}(\.[a-z]+)"', PROGRAM)
    for name, folder in folders.items():
        monkeypatch.setenv(name, folder)
    tags = [re.sub(r"Pa |Ar |\\& | ?Ns ", "", tag) for tag in entries(1, "FILES")]
    assert {os.path.expandvars(tag) for tag in tags} == usual | {f"{dot}file{end}" for dot, end in beside}


def test_the_variables_that_are_read_are_in_the_page():
    read = set(re.findall(r'"((?:ANTHROPIC|XDG|SSL|STREAMCLI_LOCAL)\w*_\w+|SSLKEYLOGFILE|NO_PROXY|PATH)"', PROGRAM))
    assert read <= set(re.findall(r"[A-Z_]{4,}", sections(1)["ENVIRONMENT"]))


def test_the_signals_that_end_a_run_are_in_the_page():
    said = re.findall(r"SIG[A-Z]+|\b1[234]\d\b", sections(1)["SIGNALS"])
    ending = [*signals.ENDING, signal.SIGPIPE]
    assert set(said) == {number.name for number in ending} | {str(128 + number) for number in ending}


# streamcli(5): the examples


TIMES = {"t", "duration", "output_tokens_per_second", "time_to_first_token", "p50", "p90", "p99"}
CHANGING = {r"127\.0\.0\.1:\d+": "host", r"\b[0-9a-f]{8,64}\b": "hash", r"(?<=streamcli/)[\d.]+": "version"}


def alike(value, key=""):
    """A JSON value without what differs from run to run: times, ports, hashes, versions, lengths."""
    if isinstance(value, dict):
        return {name: alike(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [alike(inner) for inner in value]
    if isinstance(value, str):
        for pattern, name in CHANGING.items():
            value = re.sub(pattern, name, value)
        return "length" if key == "content-length" else value
    return "time" if key in TIMES and isinstance(value, int | float) else value


def parsed(data):
    return [json.loads(line) for line in data.splitlines()]


@pytest.fixture
def asked(server):
    """Asks a server that gives these responses; what came on standard output, as JSON lines."""

    def ask_it(*responses_and_words, **options):
        server.responses = [each for each in responses_and_words if not isinstance(each, str)]
        words = [each for each in responses_and_words if isinstance(each, str)]
        return parsed(ask(server, *words, **options).out)

    return ask_it


@pytest.fixture
def tool(tmp_path):
    """The program of the page, for which it is always noon."""
    (tmp_path / "now").write_text(texts(5, "Tool programs")[0])
    (tmp_path / "date").write_text("#!/bin/sh\necho 12:00\n")
    for name in ("now", "date"):
        (tmp_path / name).chmod(0o755)
    return environment(PATH=f"{tmp_path}:{os.environ['PATH']}")


def test_events_are_those_of_the_example(asked):
    assert asked(PARIS, "--events") == values(5, "Events")


def test_the_last_event_of_a_stream_that_broke_off_is_that_of_the_example(asked):
    assert asked(head() + opening("Par"), "--events")[-1:] == values(5, "Events", 1)


def test_a_tool_result_among_events_is_that_of_the_example(asked, tool):
    events = asked(CALL, PARIS, "--events", "-T", "now", env=tool)
    found = [event for event in events if event["type"].startswith("streamcli.")]
    assert found == values(5, "Tool results")
    assert found[0].keys() <= set(items(5, "Tool results"))


def test_the_final_message_is_that_of_the_example_and_the_last_snapshot(asked):
    assert asked(PARIS, "--message") == values(5, "Message") == asked(PARIS, "--snapshots")[-1:]


def test_the_first_snapshots_are_those_of_the_example(asked):
    assert asked(PARIS, "--snapshots")[:3] == values(5, "Snapshots")


def test_an_event_stream_is_passed_on_as_the_example_shows(server):
    server.responses = [PARIS]
    assert texts(5, "Event stream")[0] in ask(server, "--sse").out.decode()


@pytest.mark.parametrize(("place", "option"), [(0, "--count-tokens"), (1, "--models")])
def test_counts_and_models_are_those_of_the_example(place, option, asked):
    found = values(5, "Counts and models", place)
    assert asked(json_response({"data": found} if place else found[0]), option, "--json") == found


def test_the_settings_of_the_example_are_shown(tmp_path):
    (tmp_path / "config.toml").write_text(texts(5, "Configuration")[0])
    words = ["--config", "config.toml", "--profile", "box", "--max-tokens", "100", "--show-config"]
    shown = streamcli(*words, cwd=tmp_path).out.decode().splitlines()
    assert set(texts(5, "Settings")[0].splitlines()) <= set(shown)


def test_a_summary_is_that_of_the_example(server):
    server.responses = [PARIS]
    shown = [dict(line.split(": ") for line in text.splitlines()) for text in texts(5, "Summary")]
    found = dict(line.split(": ") for line in ask(server, "--summary").out.decode().splitlines())
    times = TIMES & found.keys()
    assert [found | dict.fromkeys(times)] == [example | dict.fromkeys(times) for example in shown]


def test_the_fields_of_usage_are_those_of_the_example(asked):
    assert alike(asked(PARIS, "--usage-to", "/dev/fd/1", "-o", os.devnull)) == alike(values(5, "Usage"))


def test_the_line_of_usage_is_that_of_the_example(server):
    server.responses = [PARIS]
    without_time = [re.sub(r"[\d.]+\n$", "", text) for text in (ask(server, "-u").err, texts(5, "Usage")[1])]
    assert without_time[0] == without_time[1]


def test_the_sources_of_an_answer_are_those_of_the_example(server):
    cited = [
        {"document_title": "report.pdf", "document_index": 1, "start_page_number": 3, "end_page_number": 4},
        {"document_title": "notes.txt", "document_index": 0, "start_char_index": 0, "end_char_index": 52},
        {"title": "Paris", "url": "https://example.com/paris"},
    ]
    deltas = [delta("citations_delta", citation=citation) for citation in [*cited, *cited]]
    events = [opening("Paris."), *deltas, block_stop(), message_delta(), MESSAGE_STOP]
    server.responses = [ok(*events)]
    assert ask(server, "--show-sources").err == texts(5, "Sources")[0]


def test_the_keys_of_a_summary_are_all_in_the_page(asked, tool, tmp_path):
    start = message_start(stop_details={"type": "refusal"})
    deviating = ok(start, text_delta("Paris."), message_delta(), MESSAGE_STOP)
    (tmp_path / "c.toml").write_text('[price."m"]\ninput_tokens = 3\noutput_tokens = 15\n')
    words = ["--usage-to", "/dev/fd/1", "-o", os.devnull, "-T", "now", "--config", str(tmp_path / "c.toml")]
    (found,) = asked(CALL, deviating, *words, env=tool)
    assert found.keys() - {"input_tokens", "output_tokens"} == set(items(5, "Summary"))


def test_an_error_line_is_that_of_the_example(server):
    server.responses = [error_response(529, "overloaded_error", "Overloaded", retry_after="30")]
    found = parsed(ask(server, "--error-format", "json").err)
    assert found == values(5, "Error line")
    assert list(found[0]) == items(5, "Error line")


def test_a_conversation_is_that_of_the_example(server, tmp_path):
    path = tmp_path / "talk.jsonl"
    question, _ = lines = values(5, "Conversations")
    server.responses = [PARIS]
    assert streamcli("--base-url", server.url, "-c", str(path), question["content"]).out == b"Paris."
    assert parsed(path.read_text()) == lines


def test_a_tape_is_that_of_the_example_and_can_be_replayed(server, tmp_path):
    lines = values(5, "Tapes")
    server.responses = [ok(lines[2]["data"].encode())]
    words = ["-I", "--base-url", server.url, "--record", str(tmp_path / "tape"), "hi"]
    assert streamcli(*words, env=environment(ANTHROPIC_API_KEY=KEY)).status == 0
    assert alike(parsed((tmp_path / "tape").read_text())) == alike(lines)
    (tmp_path / "tape").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert streamcli("--replay", str(tmp_path / "tape"), "--message").out == b'{"content":[]}\n'


def test_the_configuration_of_the_example_is_in_force(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(texts(5, "Configuration")[0])
    example = tomllib.loads(path.read_text())
    profiles = example.pop("profile")
    assert set(profiles) == {"local", "box"}
    for words, wanted in ([], example), (["--profile", "box"], example | profiles["box"]):
        shown = tomllib.loads(streamcli("--config", str(path), "--show-config", *words).out.decode())
        assert {key: shown[key] for key in wanted} == wanted
    shown = streamcli("--config", str(path), "--show-config", "--profile", "local").out.decode()
    assert re.search(r"^local = .* profile local, ", shown, re.MULTILINE)


def test_the_counters_that_can_have_a_price_are_those_of_the_page():
    assert manual.bare_items(5, "Prices") == list(price.COUNTERS)
    (tables,) = tomllib.loads(texts(5, "Prices")[0]).values()
    assert [sum(price.checked(table).values()) for table in tables.values()] == [28.05]


@pytest.fixture
def batch_file(tmp_path):
    path = tmp_path / "batch.jsonl"
    path.write_text(texts(5, "Request lines")[0])
    return path


def test_the_request_lines_of_the_example_give_the_result_lines_and_statistics(server, batch_file, tmp_path):
    server.responses = [lambda asking: error_response(400) if b"Spain" in asking.body else PARIS]
    report = tmp_path / "report.json"
    words = ["--base-url", server.url, "--batch", str(batch_file), "--usage-to", str(report)]
    found = parsed(streamcli(*words).out)
    assert alike(found[:2]) == alike(values(5, "Result lines"))
    assert (found[2]["custom_id"], found[2]["result"]["type"]) == ("three", "succeeded")
    assert alike(parsed(report.read_text())) == alike(values(5, "Statistics"))


def test_the_state_of_an_offloaded_batch_is_that_of_the_example(batch_file, tmp_path):
    with BatchesServer(faults={"retrieve": [error_response(401, "authentication_error")]}) as api:
        words = ["--base-url", api.url, "--batch", str(batch_file), "--offload", "-o", str(tmp_path / "out")]
        assert streamcli(*words).status == 4
    assert alike(parsed((tmp_path / "out.batches").read_text())) == alike(values(5, "State file"))


def test_the_tool_of_the_example_describes_itself_and_answers(tool):
    programs = tools.described(["now"], environment=tool, timeout=20)
    call = {"type": "tool_use", "id": "t", "name": "now", "input": {}}
    (block,) = tools.results([call], programs, environment=tool, timeout=20)
    assert block == {"type": "tool_result", "tool_use_id": "t", "content": "12:00"}


def test_the_tool_definitions_of_the_example_are_declared():
    text = texts(5, "Tool definitions")[0]
    assert tools.declared(text.encode(), "the page") == json.loads(text)


# streamcli(5): the lists


def test_the_types_of_errors_are_all_in_the_page_with_their_statuses():
    bases = {errors.APIError, errors.StreamError, errors.ShapeError}  # of which none is raised itself
    found = {cls for cls in all_subclasses(errors.StreamcliError) if cls.__module__.startswith("streamcli")} - bases
    assert {answer.SignalError, verdict.StopReasonError, batch.FailedLinesError} <= found
    assert set(items(5, "Error types")) == {f"streamcli.{cls.code}" for cls in found}
    statuses = re.findall(r"^\.It Li streamcli\.(\w+) , No status (\d+)$", sections(5)["Error types"], re.MULTILINE)
    own = {cls.code: cls.exit_code for cls in found if "code" in cls.__dict__}
    assert {code: own[code] for code, _ in statuses} == {code: int(status) for code, status in statuses}


def test_the_keys_of_tapes_results_statistics_and_states_are_all_in_the_page(tmp_path):
    assert set(items(5, "Tapes")) == tapes._TYPES.keys() | {"end"}
    assert set(items(5, "Result lines")) == {"succeeded", "errored"} | results._OTHER_OUTCOMES.keys()
    assert items(5, "Statistics") == list(Statistics(1).fields())
    assert set(items(5, "State file")) == keys_of_a_state(tmp_path / "state")


def keys_of_a_state(path):
    with state.State(str(path), "http://host") as made:
        made.intend(part := state.Part(0))
        made.submitted(part, "msgbatch_01", adopted=True)
        made.fetched(part)
        return set().union(*parsed(path.read_text()))


def test_the_keys_of_a_configuration_are_all_in_the_page_by_what_they_take():
    def kind(option):
        if option.is_flag:
            return "true or false"
        if option.multiple:
            return "a list of strings, or one string"
        return "a number" if option.type.name == "number" else "a string"

    wanted = {}
    for option in OPTIONS:
        keys = [name[2:] for name in option.opts if name.startswith("--") and option.name not in config._NOT_HERE]
        wanted[kind(option)] = wanted.get(kind(option), set()) | set(keys)
    entries = re.findall(r"^\.It (.+)\n((?:\.Li .*\n)+)", sections(5)["Configuration"], re.MULTILINE)
    found = {tag: set(re.findall(r"[a-z][\w-]+", lines.replace(".Li", ""))) for tag, lines in entries}
    assert found == wanted


def test_the_limits_of_tools_and_the_variables_they_miss_are_those_of_the_page():
    limits = [tools.MAX_BYTES, tools._TAIL, processes._AT_ONCE, OPTIONS_BY_NAME["tool_timeout"].default]
    assert [int(row[-1]) for row in rows(5, "Tool programs")] == limits
    words = re.findall(r"(?:ANTHROPIC|STREAMCLI)_[A-Z_]+", sections(5)["Tool programs"])
    assert set(words) == tools._SECRET_VARIABLES


# streamcli(7)


def test_the_headers_of_a_request_are_all_in_the_page():
    found = set()
    for scheme in ("x-api-key", "bearer"):
        endpoint = request.Endpoint("https://host", request.Credential(scheme, KEY))
        found |= endpoint.request("POST", "/v1/messages", {}, betas=["a"]).headers.keys()
    assert set(items(7, "Headers")) == found


def test_the_version_rule_is_that_of_the_page():
    fields = manual.bare_items(7, "Version")
    assert set(fields) == request._SAMPLING
    assert {request.version_for({field: 1}) for field in fields} == {request.SAMPLING_API_VERSION}
    dates = re.findall(r"\d{4}-\d\d-\d\d", sections(7)["Version"])
    assert set(dates) == {request.API_VERSION, request.SAMPLING_API_VERSION}
    assert dates[0] == request.version_for({})


def test_a_plain_request_has_the_fields_of_the_page(server, asked):
    asked(PARIS, "--message")
    assert list(server.request().json) == manual.bare_items(7, "Body")


def test_the_events_that_are_read_are_those_of_the_page():
    assert set(items(7, "Events")) == message.KNOWN_TYPES | {"ping"}
    assert f"more than {sse.MAX_EVENT_BYTES >> 20} MiB" in prose(7, "Decoding")


FRAGMENTS = {"citation": {"cited_text": "a"}, "partial_json": "{}"}


@pytest.mark.parametrize(("delta", "kind", "field", "effect"), rows(7, "Deltas"))
def test_a_delta_does_what_the_table_says(delta, kind, field, effect):
    value = FRAGMENTS.get(field, "a")
    target = {"citation": "citations", "partial_json": "input"}.get(field, field)
    block = grown(kind, [{"type": delta, field: value}] * 2)
    wanted = {"appended": "aa", "replaced": "a", "added": [value, value]}[effect]
    assert block[target] == wanted if field != "partial_json" else block["partial_json"] == ["{}", "{}"]
    other = "text" if kind != "text" else "thinking"
    with pytest.raises(errors.ProtocolError):
        grown(other, [{"type": delta, field: value}])


def grown(kind, deltas):
    accumulator = message.Accumulator()
    for event in (
        {"type": "message_start", "message": {}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": kind}},
        *({"type": "content_block_delta", "index": 0, "delta": change} for change in deltas),
    ):
        accumulator.receive(event["type"], json.dumps(event).encode())
    block = accumulator.blocks[0].snapshot()
    return block | {"partial_json": accumulator.blocks[0].pieces} if kind in message._TOOL_INPUTS else block


def test_every_kind_of_deviation_is_in_the_page_and_no_other():
    assert set(manual.terms(7, "Deviations that are read through")) == deviations.KINDS.keys()


def test_deltas_and_blocks_are_all_in_the_page():
    assert {(delta, kind) for delta, kind, *_ in rows(7, "Deltas")} == {
        (name, kind) for name, rule in message.DELTAS.items() for kind in rule.blocks
    }
    assert set(manual.bare_items(7, "Content blocks")) == message._WHOLE_BLOCKS


def test_the_stop_reasons_that_are_noted_are_those_of_the_page():
    noted = re.findall(r"^\.It Li (\w+) Pq noted$", sections(7)["Stop reasons"], re.MULTILINE)
    assert set(noted) == verdict._SHORT.keys()


def statuses(words):
    """The statuses that a row of the table is for."""
    first, *last = map(int, re.findall(r"\d+", words))
    named = [int(row[0]) for row in rows(7, "Statuses") if row[0].isdigit()]
    return [first] if not last else [each for each in range(first, last[0] + 1) if each not in named and each != 407]


@pytest.mark.parametrize(("words", "kind", "exit_status", "retried"), rows(7, "Statuses"))
def test_a_status_means_what_the_table_says(words, kind, exit_status, retried):
    for status in statuses(words):
        error = exchange.Exchange(request.Request("POST", "http://host", {}, b"")).error_response(status, {}, b"{}")
        again = retry.delay(error, 0, max_retries=1, chance=0, now=0) is not None
        known = errors.type_of_status(status) or ""
        assert (status, known, error.exit_code, again) == (status, kind, int(exit_status), retried == "yes")
        if kind and "to" not in words and status != 503:
            in_stream = errors.status_error(None, {"error": {"type": kind}})
            assert in_stream.exit_code == error.exit_code


def test_the_limits_of_error_responses_are_those_of_the_page():
    said = prose(7, "Error responses")
    assert f"at most {errors._EXCERPT} characters" in said
    assert f"At most {body.MAX_ERROR_BODY >> 10} KiB of the body are read" in said
    assert f"for at most {timeouts.ERROR_BODY_TIMEOUT:g} seconds" in said


def test_the_waits_between_attempts_are_those_of_the_page():
    assert set(manual.bare_items(7, "What is retried")) == errors.HOPELESS
    fault = errors.APIConnectionError("no")
    waits = [retry.delay(fault, attempt, max_retries=9, chance=0, now=0) for attempt in range(6)]
    first, then = ", ".join(f"{wait:g}" for wait in waits[:4]), waits[4]
    assert waits[5] == then
    assert f"{first}, then {then:g} seconds" in prose(7, "Waiting")
    assert f"more than {retry.MAX_WAIT:g} seconds gets no further attempt" in prose(7, "Waiting")
    said = prose(7, "Throttling")
    assert f"at most {limiter.MAX_HOLD:g} seconds" in said
    assert f"After {limiter.PATIENCE:g} seconds without an answer" in said
    assert f"{limiter.PATIENCE:g} seconds in which no line is answered" in prose(1, "Throttling")
    assert f"After {pool._LONG_SILENCE:g} seconds a note" in said
    for statuses_, link, end in (pool._THROTTLED, "or", ","), (pool._NOT_ALLOWED, "", " or one of the two"):
        *most, last = map(str, sorted(statuses_))
        assert f"{', '.join(most)}{f' {link} ' if link else ', '}{last}{end}" in said


def test_timeouts_and_proxies_are_those_of_the_page():
    found = [row[-1] for row in rows(7, "Timeouts")]
    limits = [timeouts.CONNECT_TIMEOUT, timeouts.IDLE_TIMEOUT, timeouts.WHOLE_TIMEOUT.read]
    assert found == [*(f"{each:g}" for each in limits), "none", f"{timeouts.ERROR_BODY_TIMEOUT:g}"]
    assert [OPTIONS_BY_NAME[name].default for name in ("connect_timeout", "idle_timeout")] == limits[:2]
    assert set(manual.bare_items(7, "Proxies")) == proxy._PORTS.keys()


def test_batches_and_counts_are_asked_for_as_the_page_says():
    said = prose(7, "Message Batches")
    assert f"at most {offload.MAX_REQUESTS} requests and {offload.MAX_BYTES >> 20} MiB" in said
    assert f"{len(offload.SETTLING)} times within {sum(offload.SETTLING):g} seconds" in said
    assert f"after {offload.FIRST_WAIT:g} second, then at growing intervals of up to {offload.LONGEST_WAIT:g}" in said
    assert f"{offload.MAX_FAULTS} failures in a row" in said
    for statuses_, link in (calls._NOTHING_DONE, "and"), (offload._ABSENT, "or"):
        *most, last = sorted(statuses_)
        assert f"{', '.join(map(str, most))} {link} {last}" in said
    assert set(manual.bare_items(7, "Token counts")) == calls.UNCOUNTED


# All pages, the recipes too


ALL = {path.name: path for path in sorted(manual.FOLDER.iterdir())}
needs_mandoc = pytest.mark.skipif(not shutil.which("mandoc"), reason="mandoc is not installed")
needs_groff = pytest.mark.skipif(not shutil.which("groff"), reason="groff is not installed")


def said_by(*words):
    """What a program says, its errors too."""
    ended = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True)
    return ended.stdout


@pytest.mark.parametrize("name", ALL)
@needs_mandoc
def test_mandoc_has_nothing_to_say(name):
    lint = ["mandoc", "-Tlint", "-W", "warning", str(ALL[name])]
    said = subprocess.run(lint, capture_output=True, text=True, check=False)
    assert said.stdout + said.stderr == ""


@pytest.mark.parametrize("name", ALL)
def test_no_quotation_mark_is_lost_in_a_macro(name):
    assert re.findall(r'^\.(?!Bl -column).*".*$', ALL[name].read_text(), re.MULTILINE) == []


@pytest.mark.parametrize("name", ALL)
@needs_groff
def test_a_page_fits_on_a_terminal(name):
    # Whatever groff warns of would be a line of its own.
    shown = said_by("groff", "-mandoc", "-ww", "-Tutf8", "-P-cbou", str(ALL[name])).splitlines()
    assert [line for line in shown if len(line) > 80 or "warning" in line] == []


@pytest.mark.parametrize("name", ALL)
@needs_groff
def test_a_page_says_of_which_program_and_version_it_is(name):
    head, *_, foot = said_by("groff", "-mandoc", "-Tutf8", "-P-cbou", str(ALL[name])).splitlines()
    title = f"{name[:-2].upper()}({name[-1]})"
    assert re.fullmatch(rf"{re.escape(title)} +[A-Z][a-z]+ .*Manual +{re.escape(title)}", head)
    # What stands at the right differs with groff.
    assert re.fullmatch(rf"streamcli {version} +\w+ \d+, \d+ +(?:streamcli {version}|{re.escape(title)})", foot)


# The program that makes an index, and those that read it: apropos may be either's.
INDEXES = {"makewhatis": ("mapropos", "apropos"), "mandb": ("apropos",)}


@pytest.mark.parametrize("maker", INDEXES)
def test_apropos_finds_every_page(maker, tmp_path):
    made = shutil.which(maker, path=f"{os.environ['PATH']}:/usr/sbin")
    apropos = next(filter(shutil.which, INDEXES[maker]), None)
    if not (made and apropos):
        pytest.skip(f"{maker} is not installed")
    for name, path in ALL.items():
        folder = tmp_path / f"man{name[-1]}"
        folder.mkdir(exist_ok=True)
        shutil.copy(path, folder)
    said_by(made, *(["-q", "-c", "-u"] if maker == "mandb" else []), str(tmp_path))
    found = said_by(apropos, "-M", str(tmp_path), "streamcli")
    assert [name for name in ALL if not re.search(rf"^{name[:-2]} ?\({name[-1]}\)", found, re.MULTILINE)] == []


def test_the_pages_are_installed_and_shown():
    installed = tomllib.loads((manual.FOLDER.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["data-files"]
    shown = (manual.FOLDER.parent / "Makefile").read_text()
    for page in manual.FOLDER.iterdir():
        assert f"man/{page.name}" in installed[f"share/man/man{page.suffix[1:]}"]
        assert f"./man/{page.name}" in shown


@pytest.mark.parametrize(("server", "kinds"), server_table.deviations().items())
def test_a_server_that_is_run_has_its_version_there_and_the_kinds_it_deviates_in(server, kinds):
    groups = ("Inference servers", "Gateways", "Test servers")
    named = {tag: text for group in groups for tag, text in entries(7, group).items()}
    [text] = [text for tag, text in named.items() if server.partition(", ")[0] in tag]
    assert set(re.findall(r"^\.Dq (.*)$", text, re.MULTILINE)) == kinds
