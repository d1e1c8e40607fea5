"""streamcli.network.head_start: a connection that is begun before it is asked for is used, or nothing comes of it."""

import contextlib
import socket

import pytest
from faults_command import full_backlog, streamcli
from server import Server, ok, text_events

from streamcli.cli import resolve
from streamcli.cli.args import parse
from streamcli.errors import APIConnectionError, UsageError
from streamcli.network import head_start
from streamcli.network.transport import own_client

ANSWER = ok(*text_events("a"))


@pytest.fixture(autouse=True)
def _nothing_under_way():
    yield
    for begun, _ in head_start._connections.values():
        begun.close()
    for kept in (head_start._lookups, head_start._connections, head_start._trusts):
        kept.clear()


class TestConnection:
    def begun(self, port):
        """The address of a connection to `port` that is under way."""
        head_start.begin("127.0.0.1", port, "/nowhere")
        (address,) = head_start.lookup("127.0.0.1", port).addresses(1)
        return address

    def test_is_used_by_the_first_request_to_its_host_alone(self, tls, ca_file):
        with Server(ANSWER, tls=tls) as server:
            head_start.begin("127.0.0.1", server.port, ca_file)
            with own_client(ca_file=ca_file) as client:
                for connections in (1, 2):
                    assert client.post(server.url, content=b"x").status_code == 200
                    assert server.connections == connections

    def test_finds_a_name_too(self, tls, ca_file):
        with Server(ANSWER, tls=tls) as server:
            head_start.begin("localhost", server.port, ca_file)
            with own_client(ca_file=ca_file) as client:
                assert client.post(f"https://localhost:{server.port}", content=b"x").status_code == 200

    def test_that_the_server_has_closed_is_not_used(self):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            address = self.begun(listener.getsockname()[1])
            listener.accept()[0].close()
            assert head_start.connection(address, 1) is None

    def test_that_is_too_old_is_closed_unspoken_to(self, monkeypatch):
        monkeypatch.setattr(head_start, "_FRESH_SECONDS", 0)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            address = self.begun(listener.getsockname()[1])
            with listener.accept()[0] as accepted:
                assert head_start.connection(address, 1) is None
                assert accepted.recv(1) == b""

    def test_has_the_timeout_of_who_asks_for_it(self):
        with full_backlog() as port, pytest.raises(TimeoutError):
            head_start.connection(self.begun(port), 0.01)

    def test_that_fails_is_tried_again_and_fails_as_ever(self, ca_file):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        head_start.begin("127.0.0.1", port, ca_file)
        with own_client(ca_file=ca_file) as client, pytest.raises(APIConnectionError) as caught:
            client.get(f"https://127.0.0.1:{port}")
        assert str(caught.value) == f"cannot connect to 127.0.0.1:{port}: connection refused"

    def test_to_a_name_that_cannot_be_one_fails_where_it_is_asked_for(self):
        with contextlib.suppress(UnicodeError):
            head_start.begin("a" * 64, 443, None)
        with pytest.raises((UnicodeError, OSError)):
            head_start.lookup("a" * 64, 443).addresses(5)


def test_a_trust_that_cannot_be_made_is_a_usage_error_where_it_is_asked_for():
    head_start.begin("127.0.0.1", 1, "/nowhere")
    with pytest.raises(UsageError, match="--ca-file cannot be used: no such file or directory"):
        head_start.trust("/nowhere")


class TestCommand:
    def connections(self, tls, ca_file, *words, status):
        """How often a run connects, and how often it asks."""
        with Server(ANSWER, tls=tls) as server:
            ended = streamcli("--base-url", server.url, "--ca-file", ca_file, *words, env={"ANTHROPIC_API_KEY": "k"})
            assert ended.status == status, ended.error
        return server.connections, len(server.requests)

    def test_asks_over_the_connection_that_it_began(self, tls, ca_file):
        assert self.connections(tls, ca_file, "hi", status=0) == (1, 1)

    def test_sends_nothing_where_something_is_wrong(self, tls, ca_file):
        assert self.connections(tls, ca_file, "-f", "/nowhere", "hi", status=2) == (1, 0)

    @pytest.mark.parametrize(
        ("words", "status"),
        [
            (("--dry-run", "hi"), 0),
            (("--as-curl", "hi"), 0),
            (("--show-config",), 0),
            (("--proxy", "http://127.0.0.1:1", "--retries", "0", "hi"), 6),
            (("--replay", "/nowhere"), 2),
            (("--batch", "/nowhere"), 2),
        ],
    )
    def test_connects_to_nobody_where_it_will_not_ask_by_a_connection_of_its_own(self, tls, ca_file, words, status):
        assert self.connections(tls, ca_file, *words, status=status) == (0, 0)

    @pytest.mark.parametrize(("url", "proxy"), [("https://192.0.2.1", "http://127.0.0.1:1"), ("http://192.0.2.1", "")])
    def test_begins_nothing_by_a_proxy_of_the_environment_or_in_clear(self, monkeypatch, url, proxy):
        monkeypatch.setenv("HTTPS_PROXY", proxy)
        resolve.begin(parse(["--base-url", url, "--allow-http", "hi"]))
        assert head_start._lookups == {}
