"""streamcli.protocol.sse: the WHATWG rules, any cut, linear work.

Slow are the cuts of the large inputs, for each is a whole decode.
"""

import base64
import itertools
import json
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamcli.errors import ProtocolError
from streamcli.protocol.sse import Decoder, ServerSentEvent

VECTORS = json.loads((Path(__file__).parent / "vectors" / "sse.json").read_text())


def decode(*chunks, **options):
    decoder = Decoder(**options)
    events = [event for chunk in chunks for event in decoder.feed(chunk)]
    decoder.close()
    return events, decoder


def chunked(data, size):
    return [data[start : start + size] for start in range(0, len(data), size)]


def cuts(data):
    """Every position of a small input; some fifty of a large one, since each costs a whole decode."""
    step = 1 if len(data) < 4000 else len(data) // 50
    return range(0, len(data) + 1, step)


def outcome(vector, *chunks):
    ignored = vector.get("ignore", [])
    events, decoder = decode(*chunks)
    rows = [{"event": e.event, "data": e.text, "id": e.id, "retry": e.retry} for e in events]
    final = {"last_event_id": decoder.last_event_id, "reconnection_time": decoder.reconnection_time}
    for row in rows:
        for key in ignored:
            del row[key]
    return rows, None if "retry" in ignored else final


def expected(vector):
    rows = [{k: v for k, v in row.items() if k not in vector.get("ignore", [])} for row in vector["expect"]]
    return rows, None if "retry" in vector.get("ignore", []) else vector["final"]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
class TestVectors:
    def test_whole(self, vector):
        data = base64.b64decode(vector["input_b64"])
        assert outcome(vector, data) == expected(vector)

    def test_cut_in_two_anywhere(self, vector):
        data, wanted = base64.b64decode(vector["input_b64"]), expected(vector)
        for cut in cuts(data):
            assert outcome(vector, data[:cut], data[cut:]) == wanted, cut

    def test_byte_by_byte_each_event_comes_out_with_its_last_byte(self, vector):
        data = base64.b64decode(vector["input_b64"])
        decoder = Decoder()
        emitted = [i + 1 for i in range(len(data)) for _ in decoder.feed(data[i : i + 1])]
        assert emitted == vector["emit_after"]
        assert outcome(vector, *(data[i : i + 1] for i in range(len(data)))) == expected(vector)


def test_there_are_115_vectors():
    assert len(VECTORS) == 115


FRAGMENTS = st.sampled_from(
    [b"data: ", b"data:", b"data", b"event: ", b"event: a\ndata: {}\n\n", b"data: x\n\n", b"id: 7", b"id:\0"]
    + [b"retry: ", b"retry: 10", b": note", b"\n", b"\r", b"\r\n", b"\n\n", b" ", b"x", b"\xef\xbb\xbf"]
    + [b"\xe2\x80\xa8", b"\xff", b"\0"]
)
STREAMS = st.lists(FRAGMENTS | st.binary(max_size=6), max_size=40).map(b"".join)


@given(STREAMS, st.data())
def test_no_cut_changes_the_events(stream, data):
    positions = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    edges = [0, *positions, len(stream)]
    chunks = [stream[a:b] for a, b in itertools.pairwise(edges)]
    whole, cut, single = decode(stream), decode(*chunks), decode(*(bytes([byte]) for byte in stream))
    assert whole[0] == cut[0] == single[0]
    assert whole[1].last_event_id == cut[1].last_event_id == single[1].last_event_id
    assert whole[1].reconnection_time == cut[1].reconnection_time == single[1].reconnection_time


def by_the_letter(stream):
    """The rules of the standard, read slowly over the whole stream as text: events as (name, data, ID)."""
    text = stream.decode("utf-8", "replace")  # a decoder of its own would drop the BOM; here it is dropped below
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    *lines, _ = text.split("\n")
    events, name, data, last_id = [], "", [], ""
    for line in lines:
        if not line:
            if data:
                events.append((name or "message", "\n".join(data), last_id))
            name, data = "", []
        elif not line.startswith(":"):
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if field == "data":
                data.append(value)
            elif field == "event":
                name = value
            elif field == "id" and "\0" not in value:
                last_id = value
    return events


def rows(events):
    return [(event.event, event.text, event.id) for event in events]


@given(STREAMS)
def test_events_are_those_of_the_standard_read_slowly(stream):
    assert rows(decode(stream)[0]) == by_the_letter(stream)


ALIKE = [
    *[b"event: a\ndata: {}\n\n", b"data: x\n\n", b"data:x\n\n", b"id: 7\nevent: a\ndata: {}\n\n"],
    *[b"event: a\nid: 7\ndata: {}\n\n", b"event: a\ndata: {}\nid: 7\n\n", b"data: x\nid: 7\n\n"],
    *[b"event: a\r\ndata: {}\r\n\r\n", b"event: a\r\ndata: {}\r\nid: 7\r\n\r\n"],
]
ODD = [
    *[*ALIKE, b"event: b\ndata: {}\n\n", b"event: a\ndata:{}\n\n", b"event: a\ndata:  {}\n\n", b"event: a\n\n"],
    *[b"event: a\ndata: 1\ndata: 2\n\n", b"event: a\ndata: {}\nid: 8\n\n", b"event: a\nretry: 10\ndata: {}\n\n"],
    *[b"id: 8\ndata: x\n\n", b"id: \ndata: x\n\n", b"id: 1\0\ndata: x\n\n", b"id\n", b"retry: 9\n", b": note\n\n"],
    *[b"\n", b"\r", b"data: ", b"\xef\xbb\xbf", b"\xff"],
]


@pytest.mark.parametrize("event", ALIKE)
@pytest.mark.parametrize("odd", ODD)
def test_many_events_alike_in_one_read_come_out_as_in_small_reads_whatever_stands_between_them(event, odd):
    for before in (0, 1, 200):
        events = [event.replace(b"7", b"%d" % number) for number in range(before + 300)]
        stream = b"".join([*events[:before], odd, *events[before:]])
        small = decode(*chunked(stream, 16))
        assert rows(small[0]) == by_the_letter(stream)
        for cut in (0, 9, len(event) * before + len(odd)):
            large = decode(stream[:cut], stream[cut:])
            assert large[0] == small[0]
            assert large[1].last_event_id == small[1].last_event_id


@pytest.mark.parametrize("event", ALIKE)
@pytest.mark.parametrize("count", [1, 300])
def test_events_of_one_line_of_data_are_not_read_line_by_line(event, count, monkeypatch):
    monkeypatch.setattr(Decoder, "_take_lines", None)
    assert len(Decoder().feed(event * count)) == count


def test_an_event_that_begins_in_the_read_that_ended_another_is_one_event():
    assert decode(b"data: 1\n", b"\nevent: a\n", b"data: 2\n\n")[0] == [
        ServerSentEvent("message", b"1"),
        ServerSentEvent("a", b"2"),
    ]


@pytest.mark.parametrize(
    "event", [*ALIKE, b"event: a\ndata: {}\nid: 7\n\n", b": note\ndata: x\n\n", b"data: x\n", b"\n"]
)
def test_the_time_is_linear_in_one_read_of_any_shape(event):
    def seconds(count):
        times = []
        for _ in range(3):
            began = time.process_time()
            decode(event * count)
            times.append(time.process_time() - began)
        return min(times)

    assert seconds(16000) < 12 * seconds(4000)


@given(
    st.lists(
        st.tuples(
            st.from_regex(r"[a-z_]{1,12}", fullmatch=True),
            st.lists(
                st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"])), min_size=1, max_size=3
            ),
        )
    )
)
def test_what_is_encoded_is_decoded(events):
    stream = "".join(f"event: {name}\n" + "".join(f"data: {line}\n" for line in lines) + "\n" for name, lines in events)
    assert decode(stream.encode())[0] == [ServerSentEvent(name, "\n".join(lines).encode()) for name, lines in events]


class TestTheCap:
    @pytest.mark.parametrize("line", [b"data:ab\n", b"data: ab\n", b"data\n", b"data: \n"])
    def test_many_short_lines_take_little_more_memory_than_their_bytes(self, line):
        cap = 1 << 19
        tracemalloc.start()
        try:
            with pytest.raises(ProtocolError):
                decode(*itertools.repeat(line * 512, 1000), max_event_bytes=cap)
            assert tracemalloc.get_traced_memory()[1] < 2 * cap
        finally:
            tracemalloc.stop()

    def test_many_lines_are_joined_as_few_are(self):
        data = b"\n".join(b"%d" % number for number in range(20_000))
        lines = b"".join(b"data: %s\n" % line for line in data.split(b"\n")) + b"\n"
        for size in (1 << 16, 999):
            assert [event.data for event in decode(*chunked(lines, size))[0]] == [data]

    @pytest.mark.parametrize("size", [1, 7, 200])
    def test_an_event_over_the_cap_is_a_protocol_error_and_the_decoder_stays_dead(self, size):
        stream = b"data: " + b"x" * 200
        decoder = Decoder(max_event_bytes=100)
        chunks = [stream[start : start + size] for start in range(0, len(stream), size)]
        with pytest.raises(ProtocolError, match="larger than 100 bytes"):
            list(map(decoder.feed, chunks))
        with pytest.raises(ProtocolError):
            decoder.feed(b"data: fine\n\n")
        with pytest.raises(ProtocolError):
            decoder.close()

    def test_many_data_lines_count_together(self):
        with pytest.raises(ProtocolError):
            decode(b"data: 12345\n" * 10, max_event_bytes=100)

    def test_events_before_the_large_one_are_returned_first(self):
        decoder = Decoder(max_event_bytes=20)
        assert [e.data for e in decoder.feed(b"data: a\n\ndata: b\n\n" + b"data: " + b"x" * 30)] == [b"a", b"b"]
        with pytest.raises(ProtocolError):
            decoder.close()

    def test_events_after_the_large_one_are_not_returned(self):
        decoder = Decoder(max_event_bytes=6000)
        assert decoder.feed(b"data: " + b"x" * 5000) == []
        with pytest.raises(ProtocolError):
            decoder.feed(b"x" * 1000 + b"\n\n" + b"data: x\n\n" * 400)

    def test_comments_and_blank_lines_without_end_cost_nothing(self):
        decoder = Decoder(max_event_bytes=100)
        for _ in range(1000):
            assert decoder.feed(b": xxxxxxxxxx\n\n" * 10) == []
        for _ in range(1000):
            assert decoder.feed(b": xxxxxxxxxx") == []
        assert decoder.feed(b"\ndata: a\n\n") == [ServerSentEvent("message", b"a")]

    @given(STREAMS, st.integers(0, 30), st.integers(1, 9))
    def test_no_cut_changes_what_is_over_the_cap(self, stream, cap, size):
        def run(*chunks):
            decoder, events = Decoder(max_event_bytes=cap), []
            try:
                for chunk in chunks:
                    events += decoder.feed(chunk)
                decoder.close()
            except ProtocolError:
                return events, "dead"
            return events, "alive"

        assert run(stream) == run(*(stream[i : i + size] for i in range(0, len(stream), size)))


def test_a_long_line_is_joined_once_however_small_the_reads():
    decoder = Decoder()
    for byte in b"data: " + b"x" * 5000:
        decoder.feed(bytes([byte]))
    assert sum(map(len, decoder._pieces)) == 5006
    assert decoder.feed(b"\n\n") == [ServerSentEvent("message", b"x" * 5000)]


def test_invented_names_do_not_fill_the_memory():
    decoder = Decoder()
    for number in range(1000):
        assert decoder.feed(b"event: e%d\ndata: 1\n\n" % number)[0].event == f"e{number}"
    assert len(decoder._names) < 100
