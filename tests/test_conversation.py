"""streamcli.turns.conversation: whole turns or nothing, whatever ends the process, and nothing the API would refuse.

Slow is what is done at every byte of a file and what kills a process dozens of times.
"""

import functools
import itertools
import json
import os
import resource
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamcli.errors import OutputError, UsageError
from streamcli.turns.conversation import Conversation


def never_busy():
    raise AssertionError("nobody else holds the file")


def conversation(path, *, busy=never_busy):
    return Conversation(str(path), busy=busy)


def messages_in(path):
    with conversation(path) as opened:
        return opened.messages


def user(content):
    return {"role": "user", "content": content}


def assistant(*blocks):
    return {"role": "assistant", "content": list(blocks)}


def text(words):
    return {"type": "text", "text": words}


def call(name, kind="tool_use"):
    return {"type": kind, "id": name, "name": "f", "input": {"a": [1]}}


def result(name, kind="tool_result"):
    return {"type": kind, "tool_use_id": name, "content": "é"}


def thinking():
    return {"type": "thinking", "thinking": "hm", "signature": "s"}


def lines(*messages):
    return b"".join(json.dumps(message, ensure_ascii=False).encode() + b"\n" for message in messages)


PLAIN = [user("a \U0001f600"), assistant(text("b\n"))]
WITH_TOOLS = [
    user([text("é")]),
    assistant(thinking(), call("1"), call("2")),
    user([result("1"), result("2")]),
    assistant(call("3")),
    user([result("3")]),
    assistant(text("d")),
]


def error_response(messages):
    """Why the API would refuse these messages, or None."""
    groups = [
        (role, [block for message in group for block in blocks_of(message)])
        for role, group in itertools.groupby(messages, lambda message: message["role"])
    ]
    for (role, blocks), (_, answer) in itertools.pairwise([*groups, ("user", [])]):
        calls = [block["id"] for block in blocks if block["type"] == "tool_use"]
        results = [block["tool_use_id"] for block in answer[: len(calls)] if block["type"] == "tool_result"]
        if sorted(calls) != sorted(results):
            return "tool calls without results right after them"
        if any(block["type"] == "text" and not block["text"].strip() for block in blocks):
            return "a blank text block"
        if role == "assistant" and blocks[-1]["type"] == "thinking":
            return "an answer that ends in thinking"
    return None


def blocks_of(message):
    return [text(message["content"])] if isinstance(message["content"], str) else message["content"]


def run(script, *args):
    """What a Python process of its own prints, as JSON."""
    words = [sys.executable, "-c", script, *map(str, args)]
    return json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE, timeout=110).stdout)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "talk.jsonl"


class TestReading:
    def test_a_new_one_is_empty_and_leaves_no_file_when_nothing_was_said(self, path):
        with conversation(path) as talk:
            assert (talk.messages, talk.notes) == ([], [])
        assert not path.exists()

    def test_messages_are_as_they_are_in_the_file(self, path):
        written = [
            {"role": "system", "content": "be brief", "clear_at": "never"},
            {"content": "a", "role": "user", "name": "somebody"},
            {"role": "assistant", "content": [{"type": "new_kind", "number": 123456789012345678901234567890}]},
        ]
        path.write_bytes(lines(*written))
        assert messages_in(path) == written

    def test_what_a_person_did_to_the_file_does_not_matter(self, path):
        first, second = (json.dumps(message).encode() for message in PLAIN)
        path.write_bytes(b"\xef\xbb\xbf" + first + b"\r\n\n  \n\t" + second + b" ")
        with conversation(path) as talk:
            assert (talk.messages, talk.notes) == (PLAIN, [])
            assert talk.append(WITH_TOOLS)
        assert messages_in(path) == PLAIN + WITH_TOOLS

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            (b"remember the milk", "is not JSON: "),
            (b'{"role":"user","content":"a"}}', "is not JSON: "),
            (b'"role"', "is not a message: it is not an object"),
            (b'[{"role":"user","content":"a"}]', "is not a message: it is not an object"),
            (b'{"content":"a"}', "is not a message: its role is not one of user, assistant, system"),
            (b'{"role":"tool","content":"a"}', "is not a message: its role is not one of user, assistant, system"),
            (b'{"role":["user"],"content":"a"}', "is not a message: its role is not one of user, assistant, system"),
            (b'{"role":"user"}', "is not a message: its content is neither text nor a list of blocks"),
            (b'{"role":"user","content":null}', "is not a message: its content is neither text nor a list of blocks"),
            (
                b'{"role":"user","content":{"type":"text"}}',
                "is not a message: its content is neither text nor a list of blocks",
            ),
            (b'{"role":"user","content":["a"]}', "is not a message: its content is neither text nor a list of blocks"),
            (b'{"role":"user","content":""}', "is not a message: its content is empty"),
            (b'{"role":"user","content":[]}', "is not a message: its content is empty"),
            (b'{"role":"user","content":"caf\xe9"}', "is not UTF-8: byte 30 is 0xe9"),
        ],
    )
    @pytest.mark.parametrize("place", ["middle", "end", "unended"])
    def test_a_line_that_is_not_a_message_is_named_and_nothing_is_overwritten(self, path, line, reason, place):
        rest = {"middle": b"\n" + lines(*PLAIN), "end": b"\n", "unended": b""}[place]
        content = lines(PLAIN[0]) + b"\n" + line + rest
        path.write_bytes(content)
        with pytest.raises(UsageError) as caught:
            conversation(path)
        assert str(caught.value).startswith(f"{path}: line 3 {reason}")
        assert path.read_bytes() == content
        path.write_bytes(b"")
        messages_in(path)  # the lock is gone

    def test_a_file_of_another_kind_is_rejected_and_stays(self, path):
        for content in (b"remember the milk", b'{"scripts":\n{}}\n', b"\0\0\0\x18ftypmp42", b"\x7fELF\0\0"):
            path.write_bytes(content)
            with pytest.raises(UsageError, match=r"line 1 is not (JSON|UTF-8|a message): "):
                conversation(path)
            assert path.read_bytes() == content


class TestUserMessage:
    def test_without_open_calls_it_is_the_content(self, path):
        blocks = [text("a"), text("b")]
        with conversation(path) as talk:
            assert talk.user_message("a") == user("a")
            assert talk.user_message(blocks) == user(blocks)
            talk.append(WITH_TOOLS)
            assert talk.user_message("a") == user("a")

    @pytest.mark.parametrize(("content", "blocks"), [("a", [text("a")]), ([text("a"), text("b")],) * 2])
    def test_calls_without_a_result_get_one_that_says_so(self, path, content, blocks):
        with conversation(path) as talk:
            assert talk.append(WITH_TOOLS[:2])
            message = talk.user_message(content)
            assert [block.pop("content")[:9] for block in message["content"][:2]] == ["no result"] * 2
            failed = {"type": "tool_result", "is_error": True}
            assert message == user([failed | {"tool_use_id": "1"}, failed | {"tool_use_id": "2"}, *blocks])
            assert talk.messages == WITH_TOOLS[:2]

    def test_results_that_a_person_added_are_not_doubled(self, path):
        path.write_bytes(lines(*WITH_TOOLS[:2], user([result("2")])))
        with conversation(path) as talk:
            message = talk.user_message("a")
            assert [block.get("tool_use_id") for block in message["content"]] == ["1", None]
            assert error_response([*talk.messages, message]) is None

    def test_a_call_that_somebody_broke_does_not_crash_it(self, path):
        path.write_bytes(lines(user("a"), assistant({"type": "tool_use", "id": []}, {"type": "tool_use"})))
        with conversation(path) as talk:
            assert [block.get("tool_use_id") for block in talk.user_message("a")["content"]] == [[], None, None]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
    max_leaves=8,
)
OTHER_BLOCKS = st.dictionaries(st.text(), JSON, max_size=3).map(lambda fields: {**fields, "type": "other"})
ANY_BLOCKS = st.one_of(
    OTHER_BLOCKS,
    st.text().map(text),
    st.sampled_from([thinking(), call("1"), call("2", "server_tool_use"), result("2", "web_search_tool_result")]),
)


@settings(max_examples=50)
@given(
    st.lists(st.lists(OTHER_BLOCKS, min_size=1, max_size=3), min_size=1, max_size=3),
    st.lists(st.text(min_size=1), min_size=1, max_size=3),
)
def test_what_is_appended_is_what_is_read(without_sync, contents, words):
    turn = [*map(user, words), *(assistant(*blocks) for blocks in contents)]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "talk")
        for times in (1, 2):
            with conversation(path) as talk:
                assert talk.append(turn)
            assert repr(messages_in(path)) == repr(turn * times)


@given(st.lists(st.lists(ANY_BLOCKS), min_size=1, max_size=3), st.booleans())
def test_what_is_written_is_never_rejected_and_is_what_is_kept(without_sync, contents, more):
    turn = [user("a"), *(message for blocks in contents for message in (assistant(*blocks), user([result("1")])))]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "talk")
        with conversation(path) as talk:
            wrote = talk.append(turn if more else turn[:-1])
            kept = talk.messages
        assert wrote == path.exists() == bool(kept)
        assert messages_in(path) == kept if wrote else not path.exists()
    assert all(message["content"] for message in kept)
    for message in kept[1::2]:
        assert not [block for block in message["content"] if block["type"] == "text" and not block["text"].strip()]


class TestAppending:
    def test_a_line_is_compact_json_that_holds_role_and_content_alone(self, path):
        answer = {"id": "msg_1", "type": "message", "model": "m", "usage": {}, **assistant(text("grüße"))}
        with conversation(path) as talk:
            assert talk.append([user("a"), answer])
            assert talk.messages == [user("a"), assistant(text("grüße"))]
        assert path.read_text("utf-8") == (
            '{"role":"user","content":"a"}\n{"role":"assistant","content":[{"type":"text","text":"grüße"}]}\n'
        )

    @pytest.mark.skipif(not shutil.which("jq"), reason="jq is not installed")
    def test_jq_reads_it(self, path):
        with conversation(path) as talk:
            talk.append([user("a\u2028\x7f\0\U0001f600"), *PLAIN[1:]])
            talk.append(WITH_TOOLS)
        read = subprocess.run(["jq", "-c", ".", path], check=True, stdout=subprocess.PIPE).stdout
        assert [json.loads(line) for line in read.splitlines()] == messages_in(path)

    @pytest.mark.parametrize(
        ("blocks", "left"),
        [
            ([text(""), text("a"), text(" \n")], [text("a")]),
            ([thinking(), text("\n\n"), call("1")], [thinking(), call("1")]),
            ([text("a"), thinking()], [text("a")]),
            ([text("a"), {"type": "redacted_thinking", "data": "x"}, thinking(), text("")], [text("a")]),
            ([text("a"), call("1", "server_tool_use")], [text("a")]),
            ([text("a"), thinking(), call("1", "mcp_tool_use")], [text("a")]),
            (
                [text("a"), call("1", "server_tool_use"), result("1", "web_search_tool_result")],
                [text("a"), call("1", "server_tool_use"), result("1", "web_search_tool_result")],
            ),
            ([call("1", "server_tool_use"), call("2")], [call("1", "server_tool_use"), call("2")]),
        ],
    )
    def test_blocks_that_the_api_gives_and_does_not_take_back_are_left_out(self, path, blocks, left):
        with conversation(path) as talk:
            assert talk.append([user("a"), assistant(*blocks)])
        assert messages_in(path) == [user("a"), assistant(*left)]

    def test_a_servers_call_whose_result_came_in_the_next_answer_is_kept(self, path):
        turn = [
            user("a"),
            assistant(call("1", "server_tool_use"), call("2")),
            user([result("2")]),
            assistant(result("1", "web_search_tool_result"), text("b")),
        ]
        with conversation(path) as talk:
            assert talk.append(turn)
        assert messages_in(path) == turn

    @pytest.mark.parametrize("content", [[], "", " ", [text("")], [thinking()], [call("1", "server_tool_use")]])
    def test_a_turn_whose_answer_has_nothing_left_is_not_written(self, path, content):
        path.write_bytes(lines(*PLAIN))
        with conversation(path) as talk:
            assert not talk.append([*WITH_TOOLS[:-1], {"role": "assistant", "content": content}])
            assert not talk.append([user("a")])
            assert talk.messages == PLAIN
        assert path.read_bytes() == lines(*PLAIN)

    def test_a_message_in_between_that_has_nothing_left_is_left_out(self, path):
        with conversation(path) as talk:
            assert talk.append([user("a"), assistant(text("")), assistant(text("b"))])
        assert messages_in(path) == [user("a"), assistant(text("b"))]

    def test_the_callers_messages_are_not_changed(self, path):
        turn = [user("a"), assistant(text(""), text("b"), thinking())]
        before = json.dumps(turn)
        with conversation(path) as talk:
            assert talk.append(turn)
        assert json.dumps(turn) == before

    @pytest.mark.parametrize(("depth", "wrote"), [(500, True), (100_000, False)])
    def test_what_could_not_be_read_again_is_not_written(self, path, depth, wrote):
        turn = [user("a"), assistant({"type": "other", "value": functools.reduce(lambda a, _: [a], range(depth), [])})]
        with conversation(path) as talk:
            if wrote:
                assert talk.append(turn)
            else:
                with pytest.raises(OutputError, match=f"^cannot write to {path}: the turn could not be read again$"):
                    talk.append(turn)
        assert len(messages_in(path)) == 2 * wrote

    @pytest.mark.parametrize("message", [{"role": "tool", "content": "b"}, user({"type": "text"}), user("\ud800")])
    def test_what_is_not_a_message_is_not_written(self, path, message):
        with conversation(path) as talk, pytest.raises(OutputError, match="the turn could not be read again"):
            talk.append([user("a"), message, assistant(text("b"))])
        assert not path.exists()

    def test_a_full_disk_leaves_the_file_as_it_was(self, path):
        path.write_bytes(lines(*PLAIN)[:-1])
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        with conversation(path) as talk:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
            try:
                with pytest.raises(OutputError, match=f"^cannot write to {path}: file too large$"):
                    talk.append([user("a" * 4096), *PLAIN[1:]])
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            assert path.read_bytes() == lines(*PLAIN)[:-1]
            assert talk.messages == PLAIN
            assert talk.append(WITH_TOOLS)
        assert messages_in(path) == PLAIN + WITH_TOOLS

    def test_it_is_for_its_owner_alone_under_any_mask(self, path):
        before = os.umask(0)
        try:
            with conversation(path) as talk:
                talk.append(PLAIN)
        finally:
            os.umask(before)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


class TestCutShort:
    def test_a_file_cut_at_any_byte_opens_with_whole_turns_and_goes_on(self, path, without_sync):
        said = [*PLAIN, {"role": "system", "content": "be brief"}, *WITH_TOOLS, *PLAIN]
        whole_turns = [0, 2, 3, 9, 11]
        content, ends = lines(*said), list(itertools.accumulate(len(lines(message)) for message in said))
        for length in range(len(content) + 1):
            cut = content[:length]
            path.write_bytes(cut)
            count = sum(end - 1 <= length for end in ends)
            torn = length not in {0, *ends, *(end - 1 for end in ends)}
            expected = said[: max(end for end in whole_turns if end <= count) if torn else count]
            with conversation(path) as talk:
                assert talk.messages == expected
                assert len(talk.notes) == torn
                assert path.read_bytes() == cut
                turn = [talk.user_message("go on"), assistant(text("well"))]
                assert error_response(talk.messages + turn) is None
                assert talk.append(turn)
            with conversation(path) as talk:
                assert (talk.messages, talk.notes) == (expected + turn, [])
            if torn:
                left = path.with_name(f"{path.name}.torn")
                assert left.read_bytes() == cut.removeprefix(lines(*expected)) + b"\n"
                left.unlink()

    def test_what_was_cut_and_cannot_be_kept_stays_where_it_is(self, path):
        path.write_bytes(cut := lines(*PLAIN)[:-5])
        path.with_name(f"{path.name}.torn").mkdir()
        with conversation(path) as talk, pytest.raises(OutputError, match="is a directory"):
            talk.append([talk.user_message("go on"), assistant(text("well"))])
        assert path.read_bytes() == cut

    def test_a_write_of_ours_that_was_cut_is_not_kept_nor_is_anything_before_it_dropped(self, path):
        mine = lines(*PLAIN, user("written by hand"))
        path.write_bytes(mine + b'\0"role":"user","content":"a"}\n{"role"')
        with conversation(path) as talk:
            assert talk.messages == [*PLAIN, user("written by hand")]
            assert len(talk.notes) == 1
            talk.append([assistant(text("well"))])
        with conversation(path) as talk:
            assert (talk.messages[-1], talk.notes) == (assistant(text("well")), [])
        assert path.read_bytes().startswith(mine)
        assert sorted(path.parent.iterdir()) == [path]

    def test_system_messages_before_the_first_turn_are_not_part_of_it(self, path):
        path.write_bytes(lines({"role": "system", "content": "be brief"}, user("a")) + b'{"role":"assist')
        with conversation(path) as talk:
            assert talk.messages == [{"role": "system", "content": "be brief"}]


# What every process of the next tests knows: the turn of a number, small, large, or with a tool.
TURNS = """
import json, os, random, signal, sys, time
from streamcli.turns.conversation import Conversation
sizes = [0, 10, 3000]
def turn(number):
    words = f"{number} " + "é" * random.Random(number).choice(sizes)
    answer = {"role": "assistant", "content": [{"type": "text", "text": words}]}
    if number % 3:
        return [{"role": "user", "content": str(number)}, answer]
    call = {"type": "tool_use", "id": str(number), "name": "f", "input": {}}
    result = {"type": "tool_result", "tool_use_id": str(number), "content": words}
    return [{"role": "user", "content": str(number)}, {"role": "assistant", "content": [call]},
            {"role": "user", "content": [result]}, answer]
def turns(count):
    return [message for number in range(count) for message in turn(number)]
def is_prompt(message):
    return isinstance(message["content"], str)
"""

# Kills a process that appends for ever, so many times at random moments, and says what the file was like.
CRASHES = f"""{TURNS}
sizes.append(60_000)
path, kills = sys.argv[1], int(sys.argv[2])
def append_for_ever(done):
    while True:
        with Conversation(path, busy=lambda: None) as talk:
            for _ in range(3):
                talk.append(turn(sum(map(is_prompt, talk.messages))))
                os.write(done, b".")
counts = {{"kills": 0, "torn": 0, "appended": 0, "appended though not yet said": 0}}
count = 0
for number in range(kills):
    if number % 8 == 0:
        count = 0
        if os.path.exists(path):
            os.unlink(path)
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        append_for_ever(writer)
    os.close(writer)
    said = len(os.read(reader, 1))
    time.sleep(random.uniform(0, 0.006))
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    said += len(os.read(reader, 1 << 16))
    os.close(reader)
    with Conversation(path, busy=lambda: sys.exit("still locked")) as talk:
        now = sum(map(is_prompt, talk.messages))
        assert talk.messages == turns(now), "not whole turns"
        assert count + said <= now <= count + said + 1, "turns were lost or invented"
        assert talk.append(turn(now))
        counts["kills"] += 1
        counts["torn"] += bool(talk.notes)
        counts["appended"] += now - count
        counts["appended though not yet said"] += now - count - said
    count = now + 1
    with Conversation(path, busy=lambda: sys.exit("still locked")) as talk:
        assert talk.messages == turns(count) and not talk.notes, "the next turn did not work"
print(json.dumps(counts))
"""

TALKER = f"""{TURNS}
path, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
waits = []
print("ready", flush=True)
sys.stdin.readline()  # until the other one is ready too
for number in range(count):
    with Conversation(path, busy=lambda: waits.append(number)) as talk:
        seen = sum(map(is_prompt, talk.messages))
        message = talk.user_message(f"{{name}} {{number}} {{seen}}")
        time.sleep(0.001)
        assert talk.append([message, *turn(number)[1:]])
print(len(waits))
"""


class TestRealProcesses:
    def test_a_process_killed_at_any_moment_leaves_whole_turns(self, path):
        counts = run(CRASHES, path, 40)
        assert counts["kills"] == 40

    def test_two_on_one_file_take_turns_and_lose_nothing(self, path):
        count, names = 30, ["one", "two"]
        words = [[sys.executable, "-c", TALKER, path, name, str(count)] for name in names]
        processes = [subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for line in words]
        assert [process.stdout.readline() for process in processes] == [b"ready\n"] * 2
        for process in processes:
            process.stdin.close()
        waits = [int(process.stdout.read()) for process in processes]
        for process in processes:
            process.stdout.close()
            process.wait()
        assert [process.returncode for process in processes] == [0, 0]
        assert sum(waits) > 0
        messages = messages_in(path)
        assert error_response(messages) is None
        prompts = [message["content"].split() for message in messages if isinstance(message["content"], str)]
        assert [int(seen) for _, _, seen in prompts] == list(range(2 * count))
        for name in names:
            assert [int(number) for who, number, _ in prompts if who == name] == list(range(count))

    def test_the_second_says_that_it_waits_and_goes_on_with_what_the_first_said(self, path):
        script = """
import json, sys
from streamcli.turns.conversation import Conversation
with Conversation(sys.argv[1], busy=lambda: print("busy", flush=True)) as talk:
    print(json.dumps(talk.messages))
"""
        with conversation(path) as talk:
            words = [sys.executable, "-c", script, str(path)]
            with subprocess.Popen(words, stdout=subprocess.PIPE) as second:
                assert second.stdout.readline() == b"busy\n"
                talk.append(PLAIN)
                talk.close()
                assert json.loads(second.stdout.readline()) == PLAIN
