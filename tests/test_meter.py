"""streamcli.output.meter: what is known of an answer, in seconds and in the API's own counters."""

import itertools

from hypothesis import given
from hypothesis import strategies as st
from server import message_start, opening, text_stream

from streamcli.output import meter as meters
from streamcli.protocol.exchange import Exchange
from streamcli.protocol.request import Request

HEADERS = {"content-type": "text/event-stream", "request-id": "req_1"}


def exchange():
    fresh = Exchange(Request("POST", "http://localhost", {}, b""))
    assert fresh.accepted(200, HEADERS)
    return fresh


class TestSummary:
    def summary(self, stream, *times):
        meter = meters.Meter(clock=iter(times).__next__)
        current = exchange()
        for received in current.receive(stream):
            if meter.first_token is None:
                meter.seen(received)
        meter.stop()
        return meters.summary(current, meter)

    def test_times_are_seconds_since_the_request(self):
        known = self.summary(text_stream("a", "b"), 100.0, 100.25, 102.0)
        assert (known["time_to_first_token"], known["duration"], known["output_tokens_per_second"]) == (0.25, 2.0, 3.5)

    def test_what_is_not_known_is_left_out(self):
        assert self.summary(opening(), 1.0, 1.0) == {
            "id": "msg_1", "model": "m", "request_id": "req_1", "input_tokens": 3, "output_tokens": 1, "duration": 0.0
        }  # fmt: skip

    def test_no_message_has_only_its_request_and_its_time(self):
        assert self.summary(b"", 1.0, 3.0) == {"request_id": "req_1", "duration": 2.0}

    def test_counters_keep_the_names_of_the_api(self):
        usage = {
            "input_tokens": 1,
            "cache_read_input_tokens": 0,
            "server_tool_use": {"web_search_requests": 2},
            "x": None,
        }
        lines = dict(meters.summary_lines(self.summary(message_start(usage=usage), 0.0, 1.0)))
        assert lines["cache_read_input_tokens"] == "0"
        assert lines["server_tool_use.web_search_requests"] == "2"
        assert "x" not in lines

    def test_a_counter_that_is_not_a_number_gives_no_rate(self):
        known = self.summary(message_start(usage={"output_tokens": "many"}), 0.0, 1.0)
        assert "output_tokens_per_second" not in known

    def test_the_summary_adds_up(self):
        meter = meters.Meter(clock=itertools.count().__next__)
        meter.turn({"input_tokens": 2, "output_tokens": 5, "server_tool_use": {"n": 1}, "service_tier": "a"})
        current = exchange()
        start = message_start(usage={"input_tokens": 3, "server_tool_use": {"n": 2, "m": 1}, "service_tier": "b"})
        for _ in current.receive(start):
            pass
        meter.stop()
        known = meters.summary(current, meter)
        assert known["input_tokens"] == 5
        assert known["output_tokens"] == 5
        assert known["server_tool_use"] == {"n": 3, "m": 1}
        assert (known["service_tier"], known["turns"]) == ("b", 2)


COUNTERS = st.dictionaries(st.sampled_from("abc"), st.integers(0, 10**20))


class TestAdded:
    def test_flags_are_not_numbers_and_null_is_not_a_counter(self):
        assert meters.added({"flag": True, "n": 1}, {"flag": True, "n": None}) == {"flag": True, "n": 1}

    @given(COUNTERS, COUNTERS)
    def test_no_token_is_lost(self, one, other):
        total = meters.added({"inner": one, **one}, {"inner": other, **other})
        assert sum(total.pop("inner").values()) == sum(total.values()) == sum((*one.values(), *other.values()))

    @given(COUNTERS)
    def test_nothing_changes_nothing(self, usage):
        assert meters.added({}, usage) == usage == meters.added(usage, {})
