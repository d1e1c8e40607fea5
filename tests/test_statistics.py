"""streamcli.batch.statistics: what a run adds up to, in bounded memory."""

import json

from streamcli.batch.statistics import Sample, Statistics


def test_percentiles_are_those_of_all_numbers_as_long_as_they_are_few():
    sample = Sample()
    for number in range(1, 201):
        sample.add(number)
    assert sample.percentiles() == {"p50": 100, "p90": 180, "p99": 198}
    assert Sample().percentiles() == {}


def test_percentiles_of_many_numbers_are_near_and_the_numbers_kept_are_bounded():
    sample = Sample(most=1000)
    for number in range(20_000):
        sample.add(number)
    assert abs(sample.percentiles()["p50"] - 10_000) < 1500
    assert len(sample._kept) == 1000


def test_statistics_add_up():
    statistics = Statistics(10, before=2)
    usage = {"input_tokens": 3, "output_tokens": 5, "cache_read_input_tokens": None, "service_tier": "standard"}
    for stop_reason, grave in (("end_turn", 0), ("max_tokens", 9)):
        statistics.add({"type": "succeeded", "message": {"usage": usage, "stop_reason": stop_reason}}, grave)
    statistics.add({"type": "errored", "error": {"error": {"type": "invalid_request_error"}}}, 3)
    statistics.add({"type": "expired"}, 5)
    statistics.answered(0.25, 0.5)
    statistics.stop()
    fields = statistics.fields()
    assert (statistics.done, fields["succeeded"], fields["errored"], fields["done_before"]) == (6, 2, 2, 2)
    assert fields["faults"] == {"stop reason max_tokens": 1, "invalid_request_error": 1, "expired": 1}
    assert fields["usage"] == {"input_tokens": 6, "output_tokens": 10}
    assert fields["time_to_first_token"]["p50"] == 0.25
    assert fields["time_to_last_token"]["p99"] == 0.5
    json.dumps(fields)
