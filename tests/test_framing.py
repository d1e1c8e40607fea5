"""streamcli.network.framing: where heads end and bodies lie, as h11 has it."""

import itertools

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from server import bytewise, chunk, cut_at

from streamcli.network.framing import Framing, HeadGate

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"


class TestHeadGate:
    def admitted(self, *reads):
        """What h11 would have seen when the head was whole, and what is left for others."""
        gate = HeadGate()
        return b"".join(gate.admit(read) for read in reads), gate.take()

    @pytest.mark.parametrize("head", [HEAD, HEAD.replace(b"\r", b""), b"HTTP/1.1 200 OK\r\n\n"])
    def test_lets_nothing_past_the_blank_line(self, head):
        assert self.admitted(head + b"data: 1\n\n") == (head, b"data: 1\n\n")

    def test_finds_the_blank_line_wherever_the_reads_are_cut(self):
        for cut in range(len(HEAD)):
            assert self.admitted(HEAD[:cut], HEAD[cut:] + b"body") == (HEAD, b"body")
        assert self.admitted(*bytewise(HEAD)) == (HEAD, b"")

    def test_gives_one_head_at_a_time(self):
        gate = HeadGate()
        assert gate.admit(b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD + b"body") == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert gate.admit(gate.take()) == HEAD
        assert gate.take() == b"body"
        assert gate.take() == b""

    def test_lets_everything_through_that_holds_no_blank_line(self):
        assert self.admitted(b"rub", b"bish\n", b"x\n") == (b"rubbish\nx\n", b"")


def ours(headers, reads, status=200):
    """The body that comes out of the reads, and whether it was whole when the connection ended."""
    framing = Framing(status, headers)
    body = b"".join(framing.decode(read) for read in reads)
    return body, not framing.broken and not framing.missing()


def h11s(headers, reads, status=200):
    """The same by h11, which is given nothing once the body is whole, as httpcore does it."""
    connection = h11.Connection(our_role=h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("host", "a")]))
    connection.send(h11.EndOfMessage())
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    body = b""
    try:
        connection.receive_data(f"HTTP/1.1 {status} OK\r\n{lines}\r\n".encode())
        for read in [*reads, b""]:
            connection.receive_data(read)
            while not isinstance(event := connection.next_event(), type):
                if isinstance(event, h11.EndOfMessage):
                    return body, True
                if isinstance(event, h11.Data):
                    body += bytes(event.data)
    except h11.RemoteProtocolError:
        return body, False
    return body, True


CHUNKED = {"transfer-encoding": "chunked"}
TOKENS = st.sampled_from(
    [b"\r\n", b"\r", b"\n", b"0", b"5", b"a", b"F", b";", b";x=1", b" ", b"\t", b"hello", b"5\r\nhello\r\n"]
    + [b"0\r\n", b"0\r\n\r\n", b"x: y\r\n", b": ", b"\x00", b"\x0b", b"1" * 20, b"1" * 21, b"\xff"]
)
RUBBISH = st.lists(TOKENS | st.binary(max_size=3), max_size=12).map(b"".join)
PIECES = st.lists(st.binary(min_size=1, max_size=40), max_size=6)


@st.composite
def chunked_bodies(draw):
    """A body in chunks, often with something wrong or unusual somewhere."""
    parts = []
    for piece in draw(PIECES):
        blanks = draw(st.sampled_from([b"", b"", b" ", b"\t ", b";a", b";a=b;c", b"; a\rb", b" ;a", b"\n", b";\n"]))
        end = draw(st.sampled_from([b"\r\n"] * 8 + [b"\n", b"", b"\r\r", b"xx"]))
        parts.append(b"%x%s\r\n%s%s" % (len(piece), blanks, piece, end))
    last = draw(st.sampled_from([b"0\r\n", b"0\r\n", b"000\r\n", b"0;x\r\n", b"", b"0"]))
    field = st.sampled_from(
        [b"a: b\r\n", b"a:\r\n", b"a: \t\xffb \r\n", b" folded\r\n", b"a: b\n", b"a b: c\r\n", b"a\r\n"]
    )
    trailers = b"".join(draw(st.lists(field, max_size=3)))
    return b"".join(parts) + last + trailers + draw(st.sampled_from([b"\r\n", b"\r\n", b"\n", b"", b"\r"]))


@pytest.mark.skipif(h11.__version__ < "0.16", reason="this h11 takes any two bytes for the end of a chunk")
@given(RUBBISH | chunked_bodies(), st.lists(st.integers(0, 60), max_size=6))
@example(b"5;a\rb\r\nhello\r\n0\r\n\r\n", [])
@example(b"5 ;a\r\nhello\r\n0\r\n\r\n", [])
@example(b"5\r\nhelloxx0\r\n\r\n", [])
@example(b"f" * 20 + b"\r\nhello", [23])
@example(b"0\r\nx: y\r\n folded\r\n\r\n", [8])
@example(b"0\r\n folded\r\n\r\n", [])
def test_chunks_come_out_as_from_h11_and_what_h11_refuses_is_refused(stream, positions):
    reads = cut_at(stream, [min(position, len(stream)) for position in positions])
    assert ours(CHUNKED, reads) == h11s(CHUNKED, reads)


@given(RUBBISH, st.integers(0, 40), st.lists(st.integers(0, 60), max_size=4))
def test_a_length_is_kept_as_by_h11(stream, length, positions):
    reads = cut_at(stream, [min(position, len(stream)) for position in positions])
    headers = {"content-length": str(length)}
    assert ours(headers, reads) == h11s(headers, reads)


@given(st.lists(st.binary(max_size=9)), st.sampled_from([200, 204, 304, 404]))
def test_without_a_length_everything_is_body_unless_the_status_has_none(reads, status):
    reads = [read for read in reads if read]
    assert ours({}, reads, status) == h11s({}, reads, status)


@given(PIECES, st.data())
def test_no_cut_changes_a_chunked_body(parts, data):
    stream = b"".join(map(chunk, parts)) + b"0\r\n\r\n"
    positions = data.draw(st.lists(st.integers(0, len(stream)), max_size=8))
    assert ours(CHUNKED, cut_at(stream, positions)) == (b"".join(parts), True)
    assert ours(CHUNKED, bytewise(stream)) == (b"".join(parts), True)


def test_a_body_cut_anywhere_is_missing_something():
    stream = chunk(b"hello") + chunk(b"world") + b"0\r\nx: y\r\n\r\n"
    for end in range(len(stream)):
        framing = Framing(200, CHUNKED)
        framing.decode(stream[:end])
        assert not framing.broken
        assert framing.missing() == "before the last chunk"
    short = Framing(200, {"content-length": "10"})
    assert short.decode(b"1234") == b"1234"
    assert short.missing() == "6 bytes early"


def test_chunked_wins_over_a_length():
    assert ours({"content-length": "3", **CHUNKED}, [chunk(b"hello") + b"0\r\n\r\n"]) == (b"hello", True)


def test_nothing_after_the_end_is_body():
    for headers, whole in [(CHUNKED, chunk(b"hello") + b"0\r\n\r\n"), ({"content-length": "5"}, b"hello")]:
        framing = Framing(200, headers)
        assert framing.decode(whole + chunk(b"more")) == b"hello"
        assert framing.done
        assert framing.decode(chunk(b"more")) == b""


def test_what_came_before_a_breach_is_handed_out_and_nothing_after_it():
    framing = Framing(200, CHUNKED)
    assert framing.decode(chunk(b"hello") + b"zz\r\n") == b"hello"
    assert framing.broken == r"a chunk begins with b'\r\nzz\r\n'"
    assert framing.decode(chunk(b"more")) == b""


@pytest.mark.parametrize("field", [b"content-length: 5", b"Transfer-Encoding: chunked"])
def test_trailers_that_would_frame_the_body_are_refused(field):
    assert ours(CHUNKED, [b"0\r\n" + field + b"\r\n\r\n"]) == (b"", False)


@pytest.mark.parametrize("opening", [b"5;", b"0\r\nx: "])
def test_a_line_without_end_is_refused_and_not_kept(opening):
    framing = Framing(200, CHUNKED)
    fed = 0
    for read in itertools.repeat(b"x" * 1000):
        framing.decode(read if fed else opening)
        fed += len(read)
        if framing.broken:
            break
    assert fed < 20_000
