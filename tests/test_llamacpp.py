"""llama.cpp's server, with a model that says what a test wants: each of its streams is read right, and what deviates
in it is named."""

import contextlib
import json
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
import real_servers
import scripted_model
from faults_command import Running, streamcli
from questions import QUESTIONS, TOOL, UNPARSED_THINKING, Outcome, ask, body, lines, texts_of
from server_table import LLAMACPP

from streamcli import Client, ProtocolError

pytestmark = [pytest.mark.local, pytest.mark.slow]

DEVIATIONS = {name: outcome.deviations for name, outcome in LLAMACPP.items()}
# Options of the server, and what it makes otherwise of the answers with them.
OPTIONS = {
    "as it comes": ({}, {}),
    "two slots": ({"n_parallel": 2}, {}),
    "four slots, one cache": ({"n_parallel": 4, "kv_unified": True}, {}),
    "reasoning auto": ({"reasoning_format": "auto"}, {}),
    "reasoning deepseek-legacy": ({"reasoning_format": "deepseek-legacy"}, {}),
    "reasoning none": ({"reasoning_format": "none"}, UNPARSED_THINKING),
}
PROGRAM = """#!/bin/sh
[ "$1" = --describe ] && exec cat "$0.json"
cat >"$0.input"
echo ask:after-a-tool
"""


def meant(name, differences=()):
    expected = dict(differences).get(name) or QUESTIONS[name].meant
    return expected._replace(deviations=DEVIATIONS.get(name, {}))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return scripted_model.write(tmp_path_factory.mktemp("model") / "scripted.gguf")


@pytest.fixture(scope="module", params=OPTIONS)
def options(request):
    return request.param


@pytest.fixture(scope="module")
def url(options, model, tmp_path_factory):
    with real_servers.llamacpp(model, tmp_path_factory.mktemp("server"), **OPTIONS[options][0]) as url:
        yield url


class TestWhateverItsOptions:
    def test_each_answer_is_what_the_model_said(self, url, options):
        differences = OPTIONS[options][1]
        got = {name: ask(url, question) for name, question in QUESTIONS.items()}
        assert got == {name: meant(name, differences) for name in QUESTIONS}

    def test_many_answers_at_a_time_are_what_the_model_said(self, url, options):
        differences = OPTIONS[options][1]
        with ThreadPoolExecutor(8) as pool:
            got = dict(zip(QUESTIONS, pool.map(lambda question: ask(url, question), QUESTIONS.values()), strict=True))
        assert got == {name: meant(name, differences) for name in QUESTIONS}

    def test_an_answer_that_comes_whole_is_the_same(self, url, options):
        differences = OPTIONS[options][1]
        with Client(base_url=url, api_key="a-key", max_retries=0) as client:
            for name in ("text", "an emoji first", "thinking"):
                message = client.messages.create(**body(QUESTIONS[name]))
                assert (lines(message), message["stop_reason"]) == meant(name, differences)[:2]


class TestWithoutJinja:
    @pytest.fixture
    def plain(self, tmp_path):
        answers = {scripted_model.LINE_END: scripted_model.ANSWERS["ask:text"]}
        model = scripted_model.write(tmp_path / "scripted.gguf", answers, endless=())
        with real_servers.llamacpp(model, tmp_path, use_jinja=False) as url:
            yield url

    def test_an_answer_is_what_the_model_said(self, plain):
        assert ask(plain, QUESTIONS["text"]) == QUESTIONS["text"].meant

    def test_a_request_with_tools_is_an_error_of_the_server(self, plain):
        assert ask(plain, QUESTIONS["a tool"]) == Outcome((), 5)


@pytest.fixture(scope="module")
def usual(model, tmp_path_factory):
    with real_servers.llamacpp(model, tmp_path_factory.mktemp("usual")) as url:
        yield url


class TestDeviations:
    @pytest.mark.parametrize("name", DEVIATIONS)
    def test_are_errors_for_who_wants_none(self, usual, name):
        refused = pytest.raises(ProtocolError, match="came before message_start")
        client = Client(base_url=usual, api_key="a-key", strict=True)
        with client, refused, client.messages.stream(**body(QUESTIONS[name])) as stream:
            stream.until_done()

    @pytest.mark.parametrize("name", [name for name in QUESTIONS if name not in DEVIATIONS])
    def test_are_in_no_other_answer(self, usual, name):
        assert ask(usual, QUESTIONS[name], strict=True) == ask(usual, QUESTIONS[name])


class TestTheCommand:
    @pytest.mark.parametrize("name", QUESTIONS)
    def test_reads_it_in_every_output_format(self, name, model, tmp_path):
        question, events = QUESTIONS[name], tmp_path / "events"
        words = ["--local", model, "-I", "--retries", "0", "--max-tokens", str(question.fields.get("max_tokens", 60))]
        if "tools" in question.fields:
            (tmp_path / "tools").write_text(json.dumps(question.fields["tools"]))
            words += ["--tools", tmp_path / "tools"]
        text = streamcli(*words, question.prompt)
        whole = streamcli(*words, "--message", "--events-to", events, question.prompt)
        assert text.status == whole.status == (question.meant.end if isinstance(question.meant.end, int) else 0)
        assert text.out.decode() == "".join(texts_of(question.meant))
        if whole.status:
            assert text.error.startswith("error event server_error: got exception: ")
            return
        message = json.loads(whole.out)
        assert Outcome(lines(message), message["stop_reason"]) == question.meant
        assert ("streamcli: stop reason max_tokens: " in text.err) == (question.meant.end == "max_tokens")
        kinds = [json.loads(line)["type"] for line in events.read_text().splitlines()]
        assert (kinds[0] == "message_start") == (name not in DEVIATIONS)
        assert kinds[-1] == "message_stop"

    def test_names_the_deviations_where_it_is_asked_to_and_refuses_them_where_it_must(self, model):
        words = ["--local", model, "-I", "ask:emoji"]
        assert streamcli(*words).err == ""
        assert "deviation: missing message_start: content_block_start came first (×1)\n" in streamcli(*words, "-v").err  # noqa: RUF001
        strict = streamcli(*words, "--strict")
        assert (strict.status, strict.out) == (8, b"")
        assert strict.error.startswith("the stream is malformed: content_block_start came before message_start")

    def test_runs_the_tool_that_is_called_and_goes_on(self, model, tmp_path):
        program = tmp_path / "get_weather"
        program.write_text(PROGRAM)
        program.chmod(0o755)
        (tmp_path / "get_weather.json").write_text(json.dumps(TOOL))
        status, out, _ = streamcli("--local", model, "-I", "-T", program, "ask:tool")
        assert (status, out) == (0, b"It rains there")
        assert json.loads((tmp_path / "get_weather.input").read_text()) == {"city": "Paris"}


class TestErrors:
    def test_in_mid_stream_end_the_command_with_8_and_keep_what_came(self, model, tmp_path):
        """Two answers share a context that holds but one of them."""
        with real_servers.llamacpp(model, tmp_path, n_ctx=4096, n_parallel=2, kv_unified=True) as url:
            words = ["--base-url", url, "-I", "--max-tokens", "4000", "ask:endless"]
            with Running(*words) as one:
                one.until_out(b"three")
                with Running(*words) as other:
                    ended = [one.end(within=60), other.end(within=60)]
        broken = [end for end in ended if end.status]
        assert broken
        for status, out, err in broken:
            assert status == 8
            assert err.endswith("error event server_error: Context size has been exceeded.\n")
            assert out.startswith(b"one two three")

    def test_that_come_without_a_stream_say_what_they_are(self, usual):
        status, out, err = streamcli("--base-url", usual, "-I", "word " * 1000)
        assert (status, out) == (3, b"")
        assert err.startswith("streamcli: error: status 400 exceed_context_size_error: ")

    def test_a_context_of_its_own_that_is_full_is_a_limit(self, model, tmp_path):
        with real_servers.llamacpp(model, tmp_path, n_ctx=256) as url:
            content, end, deviations = ask(url, QUESTIONS["a limit"], max_tokens=4000)
        assert (end, deviations) == ("max_tokens", {})
        assert len(content[0]) > 500

    def test_a_server_that_dies_in_mid_stream_leaves_an_incomplete_answer(self, model, tmp_path):
        with contextlib.ExitStack() as server:
            url = server.enter_context(real_servers.llamacpp(model, tmp_path, ctx_shift=True))
            with Running("--base-url", url, "-I", "--max-tokens", "1000000", "ask:endless") as running:
                running.until_out(b"three")
                server.close()
                status, out, err = running.end()
        assert status == 8
        assert out.startswith(b"one two three")
        assert err.startswith("streamcli: error: ")


class TestKeys:
    @pytest.fixture
    def guarded(self, model, tmp_path):
        with real_servers.llamacpp(model, tmp_path, api_keys=["right-key"]) as url:
            yield url

    @pytest.mark.parametrize(
        ("header", "key", "status"),
        [("x-api-key", "right-key", 0), ("bearer", "right-key", 0), ("x-api-key", "wrong-key", 4), ("bearer", "", 4)],
    )
    def test_open_it_in_either_header(self, guarded, header, key, status):
        words = ["--base-url", guarded, "-I", "--auth", header, "ask:text"]
        ended = streamcli(*words, env={"ANTHROPIC_API_KEY": key or None})
        assert ended.status == status
        if status:
            assert ended.error.startswith("status 401 authentication_error: Invalid API Key")
            assert "wrong-key" not in ended.err
        else:
            assert ended.out == b"Hello, world."


def test_comments_while_the_server_is_busy_are_nothing(tmp_path):
    model = scripted_model.write(tmp_path / "scripted.gguf", context=20_000)
    tape = tmp_path / "tape"
    # A prompt that is taken in at once holds up every other answer for seconds.
    slow = {"n_parallel": 2, "n_ctx": 20_000, "n_batch": 8192, "n_ubatch": 8192}
    with real_servers.llamacpp(model, tmp_path, ctx_shift=True, sse_ping_interval=1, **slow) as url:
        words = ["--base-url", url, "-I", "--max-tokens", "1000000", "--record", tape, "ask:endless"]
        with Running(*words) as running:
            running.until_out(b"three")
            long = {"role": "user", "content": "x" * 4000 + "ask:text"}
            assert ask(url, QUESTIONS["text"], messages=[long]) == QUESTIONS["text"].meant
            running.signal(signal.SIGINT)
            status, out, err = running.end()
    pieces = [json.loads(line).get("data", "") for line in tape.read_text().splitlines()]
    assert any(piece.startswith(":") for piece in pieces)
    assert (status, err) == (-signal.SIGINT, "")
    assert (b"one two three" * (len(out) // 13 + 1)).startswith(out)
