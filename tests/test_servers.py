"""Gateways, engines and mock servers of other people, each as it comes from its package: what they send is read as it
is meant, but for what tests/server_table.py says that they make of it."""

import contextlib
import json
import signal
import socket
from urllib.parse import urlsplit

import httpx
import pytest
import real_servers
import scripted_model
from faults_command import Running
from questions import KEY, QUESTIONS, Outcome, ask
from server import LAST_CHUNK, Listener, chunk, error_response, head, join, ok, opening
from server import Server as Stub
from server_table import ENGINES, GATEWAYS, MADE_UP, MOCKS, ROUTES

pytestmark = [pytest.mark.local, pytest.mark.slow, pytest.mark.timeout(real_servers.INSTALL_WITHIN * 2)]

TYPES = {401: "authentication_error", 529: "overloaded_error"}


def _chat(**delta):
    choice = {"index": 0, "delta": delta, "finish_reason": None}
    data = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return chunk(f"data: {json.dumps(data)}\n\n".encode())


# A stream of Chat Completions that has neither a finish reason nor [DONE].
CHAT = head(chunked=True) + _chat(role="assistant") + _chat(content="one") + LAST_CHUNK


class Relay(Listener):
    """Passes connections on to a port, which may be another one for a while, and can break off those that there are."""

    def __init__(self, port):
        self._port = port
        super().__init__()

    @contextlib.contextmanager
    def to(self, port):
        usual, self._port = self._port, port
        self.cut()
        try:
            yield
        finally:
            self._port = usual
            self.cut()

    def handle(self, connection, number):
        with socket.create_connection(("127.0.0.1", self._port)) as upstream:
            with self._lock:
                self._open.add(upstream)
            try:
                join(connection, upstream)
            finally:
                with self._lock:
                    self._open.discard(upstream)

    def cut(self):
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def relay(tmp_path_factory):
    """What the gateways take for llama.cpp."""
    folder = tmp_path_factory.mktemp("llama.cpp")
    model = scripted_model.write(folder / "scripted.gguf")
    with (
        real_servers.llamacpp(model, folder, ctx_shift=True) as url,
        Relay(int(url.rpartition(":")[2])) as relay,
    ):
        yield relay


@pytest.fixture(scope="module", params=GATEWAYS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def gateway(name, relay, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gateway")
    with real_servers.running(name, GATEWAYS[name], folder, upstream=relay.url) as url:
        yield url


@pytest.fixture
def routes(name):
    return [route for route in ROUTES if route.gateway == name]


def asked(url, model, question, **options):
    """The outcome of a question, asked again where a gateway tried a connection that had been closed behind it."""
    retries = 0 if question.meant.end == 5 else 3
    return ask(url, question, model=model, retries=retries, **options)


@contextlib.contextmanager
def endless(url, model, *words):
    """The command while it gets an answer without an end."""
    words = ["--base-url", url, "-m", model, "-I", "--retries", "0", "--max-tokens", "1000000", *words, "ask:endless"]
    with Running(*words, env={"ANTHROPIC_API_KEY": KEY}) as running:
        yield running


class TestGateways:
    def test_each_answer_is_what_the_model_said_but_for_what_the_gateway_makes_of_it(self, gateway, routes):
        for route in routes:
            got = {name: asked(gateway, route.model, question) for name, question in QUESTIONS.items()}
            assert got == {name: question.meant for name, question in QUESTIONS.items()} | route.differences, (
                route.model
            )

    def test_deviations_are_errors_for_who_wants_none(self, gateway, routes):
        for route in routes:
            for name, outcome in route.differences.items():
                if outcome.deviations:
                    assert asked(gateway, route.model, QUESTIONS[name], strict=True).end == 8

    def test_an_answer_comes_piece_by_piece_and_can_be_interrupted(self, gateway, routes, relay):
        for route in routes:
            with endless(gateway, route.model) as running:
                if not route.waits:
                    running.until_out(b"one two three")
                    running.signal(signal.SIGINT)
                    assert running.end().status == -signal.SIGINT
            relay.cut()  # not every gateway does so by itself

    def test_a_stream_that_is_cut_behind_it_is_incomplete_if_the_gateway_tells(self, gateway, routes, relay):
        for route in routes:
            with endless(gateway, route.model, "--idle-timeout", "5") as running:
                if not route.waits:
                    running.until_out(b"one two three")
                    relay.cut()
                status, out, _ = running.end(within=30)
                assert status == route.cut, route.model
                assert out.startswith(b"" if route.waits else b"one two three")
            relay.cut()

    def test_a_stream_that_does_not_say_its_end_is_incomplete_if_the_gateway_tells(self, gateway, routes, relay):
        stub = Stub(lambda request: ok(opening("one")) if request.path.endswith("/messages") else CHAT)
        with stub, relay.to(stub.port):
            for route in filter(lambda route: route.unfinished is not None, routes):
                got = asked(gateway, route.model, QUESTIONS["text"], max_tokens=61)
                assert got == Outcome(("text: one",), route.unfinished), route.model

    def test_an_error_response_behind_it_has_its_exit_status(self, gateway, routes, relay):
        for route in routes:
            for status, end in route.statuses.items():
                with Stub(error_response(status, TYPES[status], "no")) as stub, relay.to(stub.port):
                    got = ask(gateway, QUESTIONS["text"], model=route.model, max_tokens=status)
                assert got == Outcome((), end), route.model


class TestEngines:
    @pytest.mark.parametrize("name", ENGINES)
    def test_each_answer_is_what_the_model_said_but_for_what_the_engine_makes_of_it(self, name, tmp_path):
        server, differences = ENGINES[name]
        (tmp_path / "model").mkdir()
        model = scripted_model.write_folder(tmp_path / "model")
        with contextlib.ExitStack() as stack:
            url = stack.enter_context(real_servers.running(name, server, tmp_path, model=model))
            got = {name: ask(url, question) for name, question in QUESTIONS.items()}
            with endless(url, "m", "--max-tokens", "1500", "--show-thinking") as running:
                running.until_err("one two three") if "parser" in name else running.until_out(b"one two three")
                stack.close()
                killed = running.end().status
        assert got == {name: question.meant for name, question in QUESTIONS.items()} | differences
        assert killed == 8


class TestMocks:
    @pytest.mark.parametrize("name", MOCKS)
    def test_what_they_make_up_is_read_as_it_is_meant(self, name, tmp_path):
        with real_servers.running(name, MOCKS[name], tmp_path) as url:
            got = {(model, asked): ask(url, QUESTIONS[asked], model=model) for model, asked in MADE_UP[name]}
        assert got == MADE_UP[name]


@pytest.fixture(scope="module")
def llmock(tmp_path_factory):
    name = "llmock 0.2.2"
    with real_servers.running(name, MOCKS[name], tmp_path_factory.mktemp("llmock")) as url:
        yield url


class TestFaults:
    """What llmock does to a stream when it is told to."""

    def outcome(self, url, asked="text", **behavior):
        scenario = urlsplit(url)._replace(path="/_llmock/scenario").geturl()
        httpx.post(scenario, json={"behaviors": [behavior]}, trust_env=False).raise_for_status()
        return ask(url, QUESTIONS[asked])

    @pytest.mark.parametrize("kind", ["disconnect", "truncate", "malformed"])
    def test_a_broken_stream_ends_with_8_and_keeps_what_came(self, llmock, kind):
        came = {}
        for after in (0, 1, 3, 4, 5, 6):  # the one in between is a ping, of which nothing is read
            content, end, deviations = self.outcome(llmock, type="stream_fault", kind=kind, after_chunks=after)
            assert (end, deviations) == (8, {})
            came[after] = content
        assert came[0] == ()
        assert came[6] == ("text: Hello! You said:",)

    @pytest.mark.parametrize(
        ("status", "end"),
        [(400, 3), (401, 4), (403, 4), (404, 3), (413, 3), (429, 5), (500, 5), (503, 5), (529, 5)],
    )
    def test_a_status_has_its_exit_status(self, llmock, status, end):
        assert self.outcome(llmock, type="fail", status=status) == Outcome((), end)

    def test_the_input_of_a_tool_that_is_not_json_is_kept_as_it_came(self, llmock):
        outcome = self.outcome(llmock, "a tool", type="tool_fault", kind="malformed_arguments")
        assert outcome == Outcome(('get_weather cut at {"city": "',), "tool_use")
