"""streamcli.batch.state: what was submitted is known to the next run, and only by its own input, options and server."""

import fcntl
import json

import pytest
from batches import DEFAULTS, BatchesServer, Case, prompts, said, succeeded
from server import error_response

from streamcli import AuthenticationError, UsageError
from streamcli.batch import offload
from streamcli.batch.source import Line
from streamcli.batch.state import MAX_ID, Digest, Part, State

URL = "http://localhost"


def test_what_was_intended_submitted_and_fetched_is_known_to_the_next_run(tmp_path):
    path = str(tmp_path / "out.batches")
    parts = [Part(0, [(line, line + 1)], 2, "abc", mark="5f0c3a97") for line in (1, 3, 5, 9)]
    with State(path, URL) as state:
        for part in parts:
            state.intend(part)
        state.submitted(parts[0], "msgbatch_01")
        state.submitted(parts[1], "msgbatch_02", adopted=True)
        state.fetched(parts[0])
        state.not_submitted(parts[3])
        assert state.waiting == parts[1:3]
    with State(path, URL) as state:
        assert state.waiting == parts[1:3]
        assert state.ids == {"msgbatch_01", "msgbatch_02"}
        state.intend(parts[3])
    assert parts[3].number == 5


def test_a_part_knows_its_lines():
    part = Part(1)
    for number in 2, 3, 4, 9, 11, 12:
        part.add(number)
    assert part.lines == [(2, 4), (9, 9), (11, 12)]
    assert [number for number in range(14) if number in part] == list(part.numbers) == [2, 3, 4, 9, 11, 12]
    assert part.count == 6


def test_an_id_gets_the_part_s_mark_as_long_as_it_stays_an_id():
    part = Part(1, mark="5f0c3a97")
    assert part.marked("a") == "a-5f0c3a97"
    assert [len(part.marked("a" * length)) for length in (55, 56, 64)] == [MAX_ID, 56, 64]


@pytest.mark.parametrize(
    ("mark", "custom_id", "is_marked"),
    [
        ("5f0c3a97", "a-5f0c3a97", True),
        ("5f0c3a97", "a-5f0c3a98", False),
        ("5f0c3a97", "a", False),
        ("5f0c3a97", None, False),
        ("5f0c3a97", ["a-5f0c3a97"], False),
        ("", "a-", False),
    ],
)
def test_only_an_id_with_its_mark_is_surely_a_part_s(mark, custom_id, is_marked):
    assert Part(1, mark=mark).marks(custom_id) == is_marked


def test_a_digest_is_another_where_an_id_a_request_or_the_order_is():
    lines = [Line(1, "a", {}, "1"), Line(2, "b", {}, "2")]
    others = [
        lines[:1],
        lines[::-1],
        [lines[0], lines[1]._replace(custom_id="c")],
        [lines[0]._replace(digest="3"), lines[1]],
    ]
    digests = []
    for each in lines, *others:
        digest = Digest()
        for line in each:
            digest.add(line)
        digests.append(digest.text)
    assert len(set(digests)) == len(digests)


class TestWhatTheNextRunMakesOfIt:
    @pytest.fixture
    def api(self):
        with BatchesServer() as server:
            yield server

    @pytest.fixture
    def case(self, api, tmp_path, monkeypatch):
        """Two batches were submitted, and nobody could be asked about them."""
        monkeypatch.setattr(offload, "FIRST_WAIT", 0)
        monkeypatch.setattr(offload, "MAX_REQUESTS", 3)
        case = Case(api, tmp_path, prompts(*"abcde"))
        api.faults["retrieve"] = [error_response(401, "authentication_error")]
        with pytest.raises(AuthenticationError):
            case.work()
        return case

    def test_what_was_submitted_is_waited_for(self, case, api):
        assert case.resume() == 0
        assert api.accepted == list("abcde")
        assert case.results == succeeded(*"abcde")

    @pytest.mark.parametrize(
        "change",
        [
            lambda lines: lines[1:],
            lambda lines: lines[::-1],
            lambda lines: lines[:4],
            lambda lines: [*prompts("a", system="Be brief."), *lines[1:]],
        ],
        ids=["without the first", "turned round", "without the last", "a request edited under its id"],
    )
    def test_another_input_is_noticed(self, case, api, change):
        case.lines = change(case.lines)
        before = case.state.read_bytes()
        with pytest.raises(
            UsageError, match=r"in.jsonl or the options changed after batch msgbatch_0\d was submitted"
        ) as caught:
            case.resume()
        assert '"id":null}' in caught.value.message
        assert case.state.read_bytes() == before
        assert len(api.batches) == 2

    def test_more_lines_at_the_end_are_one_more_part(self, case, api):
        case.lines += prompts("f")
        assert case.resume() == 0
        assert [batch.ids for batch in api.batches] == [list("abc"), list("de"), ["f"]]

    def test_another_server_is_noticed(self, case):
        with pytest.raises(UsageError, match="line 1 is about a batch at http"):
            case.resume(url="http://localhost:1")

    def test_a_file_that_is_not_ours_is_left_alone(self, case):
        case.state.write_text('{"a": 1}\n')
        with pytest.raises(UsageError, match="line 1 is not a line of a state file"):
            case.resume()
        assert case.state.read_text() == '{"a": 1}\n'

    @pytest.mark.parametrize("line", ['{"part": 9, "id": "x"}', '{"part": 1}', "[]", '{"part": 1, "lines": [1]}'])
    def test_nor_is_a_line_that_means_nothing(self, case, line):
        with case.state.open("a") as state:
            state.write(line + "\n")
        with pytest.raises(UsageError, match="line 5 is not a line of a state file"):
            case.resume()

    def test_a_torn_tail_is_as_if_it_were_not_there(self, case, api):
        whole = case.state.read_bytes()
        last = whole.splitlines(keepends=True)[-1]
        case.state.write_bytes(whole.removesuffix(last) + last[: len(last) // 2])
        assert case.resume() == 0
        assert api.accepted == list("abcde")

    def test_two_runs_do_not_share_it(self, case):
        with case.state.open() as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            with pytest.raises(UsageError, match="is being used by another run: wait for it to end"):
                case.resume()

    def test_lines_that_were_done_meanwhile_are_not_fetched_twice(self, case, api):
        for batch in api.batches:
            api.end(batch)
        case.output.write_bytes(
            json.dumps({"custom_id": "a", "result": said("a", prompts("a")[0]["params"] | DEFAULTS)}).encode() + b"\n"
        )
        assert case.resume() == 0
        assert case.results == succeeded(*"abcde")
