"""streamcli.network.head_start: a connection that is begun before it is asked for is used, or nothing comes of it."""

import contextlib
import select
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor

import pytest
from faults_command import closed_port, full_backlog, streamcli
from server import PATIENCE, Server, ok, text_events

from streamcli.cli import resolve
from streamcli.cli.args import parse
from streamcli.errors import APIConnectionError, UsageError
from streamcli.network import head_start
from streamcli.network.transport import own_client

ANSWER = ok(*text_events("a"))


@pytest.fixture(autouse=True)
def _nothing_under_way():
    yield
    for begun in head_start._connections.values():
        begun.close()
        with contextlib.suppress(Exception):
            begun._secured.result(PATIENCE).close()
    for kept in (head_start._lookups, head_start._connections, head_start._trusts):
        kept.clear()


class TestConnection:
    def begun(self, port, ca_file):
        """The address of a connection to `port` that is under way."""
        head_start.begin("127.0.0.1", port, ca_file)
        (address,) = head_start.lookup("127.0.0.1", port).result(PATIENCE)
        return address

    def failure(self, port, ca_file, **timeouts):
        """What a request says that asks for the connection to `port` that was begun before."""
        head_start.begin("127.0.0.1", port, ca_file)
        with own_client(ca_file=ca_file) as client, pytest.raises(APIConnectionError) as caught:
            client.get(f"https://127.0.0.1:{port}", **timeouts)
        return str(caught.value)

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

    def test_has_its_tls_before_anybody_asks_for_it(self, tls, ca_file):
        with Server(ANSWER, tls=tls) as server:
            begun = head_start.connection(self.begun(server.port, ca_file), PATIENCE)
            begun._secured.result(PATIENCE)
            with begun.secured(head_start.trust(ca_file), "127.0.0.1", PATIENCE) as connection:
                assert connection.version() == "TLSv1.3"

    @pytest.mark.parametrize(("trusted", "host"), [(False, "127.0.0.1"), (True, "localhost")])
    def test_is_nobody_else_s(self, ca_file, trusted, host):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            begun = head_start.connection(self.begun(listener.getsockname()[1], ca_file), PATIENCE)
            context = head_start.trust(ca_file) if trusted else ssl.create_default_context()
            with contextlib.closing(begun), pytest.raises(ConnectionError):
                begun.secured(context, host, PATIENCE)
            with listener.accept()[0] as accepted:
                accepted.recv(1)  # ssl leaves a socket open whose peer goes before that

    def test_that_the_server_has_closed_is_not_used(self, ca_file):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            address = self.begun(listener.getsockname()[1], ca_file)
            listener.accept()[0].close()
            assert head_start.connection(address, PATIENCE) is None

    def test_hears_no_word_before_everything_is_checked(self, ca_file):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            begun = head_start._connections[self.begun(listener.getsockname()[1], ca_file)]
            with listener.accept()[0] as accepted:
                begun.trusted.result(PATIENCE)
                assert select.select([accepted], [], [], 0.05)[0] == []
                head_start.proceed()
                assert accepted.recv(1) == b"\x16"

    def test_that_nobody_wants_any_more_ends_unspoken_to(self, ca_file):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            begun = head_start._connections[self.begun(listener.getsockname()[1], ca_file)]
            with listener.accept()[0] as accepted:
                begun.close()
                assert accepted.recv(1) == b""

    def test_that_is_too_old_is_closed_and_another_one_made(self, tls, ca_file, monkeypatch):
        monkeypatch.setattr(head_start, "_FRESH_SECONDS", 0)
        with Server(ANSWER, tls=tls) as server:
            begun = head_start._connections[self.begun(server.port, ca_file)]
            head_start.proceed()
            connection = begun._secured.result(PATIENCE)
            with own_client(ca_file=ca_file) as client:
                assert client.post(server.url, content=b"x").status_code == 200
            assert (server.connections, connection.fileno()) == (2, -1)

    def test_has_the_timeout_of_who_asks_for_it(self, ca_file):
        with full_backlog() as port, pytest.raises(TimeoutError):
            head_start.connection(self.begun(port, ca_file), 0.01)

    def test_has_that_timeout_for_its_tls_too(self, ca_file):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            said = self.failure(port, ca_file, timeout=0.2)
            assert said == f"the TLS handshake with 127.0.0.1:{port} did not end within the connect timeout of 0.2 s"

    def test_that_the_server_does_not_want_fails_where_it_is_asked_for(self, ca_file):
        def hang_up():
            with listener.accept()[0] as accepted:
                accepted.recv(1)

        with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor() as pool:
            pool.submit(hang_up)
            port = listener.getsockname()[1]
            assert self.failure(port, ca_file).startswith(f"the TLS handshake with 127.0.0.1:{port} failed: ")

    def test_that_fails_is_tried_again_and_fails_as_ever(self, ca_file):
        with closed_port() as port:
            assert self.failure(port, ca_file) == f"cannot connect to 127.0.0.1:{port}: connection refused"

    def test_to_a_name_that_cannot_be_one_fails_where_it_is_asked_for(self):
        with contextlib.suppress(UnicodeError):
            head_start.begin("a" * 64, 443, None)
        with pytest.raises((UnicodeError, OSError)):
            head_start.lookup("a" * 64, 443).result(5)


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

    def test_trusts_whom_the_environment_names(self, tls, ca_file):
        environment = {"ANTHROPIC_API_KEY": "k", "SSL_CERT_FILE": ca_file}
        with Server(ANSWER, tls=tls) as server:
            ended = streamcli("--base-url", server.url, "hi", env=environment)
        assert (ended.status, ended.out, server.connections) == (0, b"a", 1), ended.err

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

    @pytest.mark.parametrize(
        ("url", "proxy"),
        [("https://192.0.2.1", "http://127.0.0.1:1"), ("http://192.0.2.1", ""), ("https://bücher.invalid", "")],
    )
    def test_begins_nothing_by_a_proxy_of_the_environment_in_clear_or_to_a_name_not_in_ascii(
        self, monkeypatch, url, proxy
    ):
        monkeypatch.setenv("HTTPS_PROXY", proxy)
        resolve.begin(parse(["--base-url", url, "--allow-http", "hi"]))
        assert head_start._lookups == {}
