"""streamcli.turns.tools: real programs, what is made of their answers, and that nothing of them stays behind.

Slow is what waits for a time limit of a program to pass, and a signal at hundreds of moments.
"""

import contextlib
import json
import os
import re
import resource
import select
import shlex
import signal
import subprocess
import sys
import time
from os import pidfd_open
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamcli.errors import ToolError, UsageError
from streamcli.turns import processes, tools
from streamcli.turns.tools import Program, clean_environment, declared, described, results

PATIENCE = 10  # seconds after which a test that waits for something fails instead
SCHEMA = {"type": "object"}
ENVIRONMENT = {"PATH": os.environ["PATH"]}


def descriptors():
    return sorted(os.listdir("/proc/self/fd"))


def has_children():
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def ends(pid):
    """Wait until a process, of whomever, is no more or a zombie."""
    try:
        fd = pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], PATIENCE)[0])
    finally:
        os.close(fd)


def marked(mark):
    """The processes that live and have `mark` in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return found


@contextlib.contextmanager
def at_most_descriptors(count):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(autouse=True)
def _leaves_nothing_behind():
    before = descriptors()
    yield
    assert descriptors() == before
    assert not has_children()


@pytest.fixture(params=["told of an end", "looking for it"])
def _both_ways(request, monkeypatch):
    """Once as on Linux, where a descriptor tells that a program has ended, once as elsewhere."""
    if request.param == "looking for it":
        monkeypatch.delattr(os, "pidfd_open")


@pytest.fixture
def make(tmp_path):
    """Writes an executable and returns its path."""

    def make(script, name="tool", interpreter="/bin/sh"):
        path = tmp_path / name
        path.write_text(f"#!{interpreter}\n{script}\n")
        path.chmod(0o755)
        return str(path)

    return make


def describing(definition, then=""):
    """A script that prints a definition."""
    return f"printf '%s\\n' {shlex.quote(json.dumps(definition))}{then}"


def call(name="tool", number=0, **arguments):
    return {"type": "tool_use", "id": f"toolu_{number}", "name": name, "input": arguments}


@pytest.fixture
def run(make):
    """The result block of one call of a script."""

    def run(script, timeout=PATIENCE, environment=ENVIRONMENT, interpreter="/bin/sh", max_bytes=1 << 20, **arguments):
        program = Program(make(script, interpreter=interpreter), {"name": "tool"})
        (block,) = results(
            [call(**arguments)], [program], environment=environment, timeout=timeout, max_bytes=max_bytes
        )
        assert block.pop("type") == "tool_result"
        assert block.pop("tool_use_id") == "toolu_0"
        return block

    return run


class TestDeclared:
    CUSTOM: ClassVar = {"name": "ls", "input_schema": SCHEMA, "strict": True, "x": 2**80}
    TYPED: ClassVar = {"type": "web_search_20260318", "name": "web_search", "max_uses": 1}
    TOOLSET: ClassVar = {"type": "computer_toolset_20260801"}

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ([CUSTOM, TYPED, TOOLSET], [CUSTOM, TYPED, TOOLSET]),
            (CUSTOM, [CUSTOM]),
            (TYPED, [TYPED]),
            ({"tools": [CUSTOM], "model": "m"}, [CUSTOM]),
            ({**CUSTOM, "type": "custom"}, [{**CUSTOM, "type": "custom"}]),
            ({**CUSTOM, "type": None}, [{**CUSTOM, "type": None}]),
            ([], []),
        ],
    )
    def test_definitions_pass_as_they_are(self, value, expected):
        assert declared(json.dumps(value).encode(), "tools.json") == expected
        assert declared(b"\xef\xbb\xbf " + json.dumps(value).encode() + b"\n", "tools.json") == expected

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "tools.json is not JSON"),
            ("{", "tools.json is not JSON"),
            ("3", "tools.json holds no tools: it needs to be an object or an array of objects"),
            ("null", "tools.json holds no tools"),
            ("[3]", "tools.json: tool 1 is not an object"),
            ('[{"type":"x"},[]]', "tools.json: tool 2 is not an object"),
            ("{}", "tools.json: tool 1 has neither a name nor a type"),
            ('{"tools":{}}', "tools.json: tool 1 has neither a name nor a type"),
            ('{"name":3,"type":"custom"}', "tools.json: tool 1 has neither a name nor a type"),
            ('{"name":"ls"}', "tools.json: tool 1 (ls) needs an object as its input_schema"),
            ('{"name":"ls","type":"custom","input_schema":"x"}', "tool 1 (ls) needs an object as its input_schema"),
        ],
    )
    def test_anything_else_is_rejected_with_its_place(self, text, message):
        with pytest.raises(UsageError, match=re.escape(message)):
            declared(text.encode(), "tools.json")

    def test_what_is_not_text_is_rejected_with_its_place(self):
        with pytest.raises(UsageError, match=r"^tools.json is not UTF-8: byte 2 is 0xff$"):
            declared(b'"\xff"', "tools.json")


class TestEnvironment:
    def test_what_is_a_key_or_leads_to_one_is_gone(self):
        kept = {
            "PATH": "/opt/sk-123456/bin:/bin",
            "ANTHROPIC_BASE_URL": "http://x",
            "STREAMCLI_MODEL": "m",
            "EMPTY": "",
        }
        hidden = {
            "ANTHROPIC_API_KEY": "a",
            "ANTHROPIC_AUTH_TOKEN": "b",
            "ANTHROPIC_CUSTOM_HEADERS": "x-api-key: c",
            "STREAMCLI_HEADER": "x-api-key: d",
            "STREAMCLI_API_KEY_CMD": "pass show key",
            "STREAMCLI_API_KEY_FILE": "/key",
            "MY_KEY": "sk-123456",
            "LINE": "Bearer sk-123456\n",
        }
        given_environment = {**kept, **hidden}
        assert clean_environment(given_environment, {"sk-123456"}) == kept
        assert given_environment == {**kept, **hidden}

    def test_an_empty_secret_hides_nothing(self):
        assert clean_environment({"A": "b"}, [""]) == {"A": "b"}

    def test_a_program_is_given_the_environment_and_no_more(self, run):
        shown = run("env", environment={"PATH": ENVIRONMENT["PATH"], "CITY": "Zürich"})["content"]
        assert {"CITY=Zürich", f"PATH={ENVIRONMENT['PATH']}"} <= set(shown.splitlines())
        assert {line.partition("=")[0] for line in shown.splitlines()} <= {"CITY", "PATH", "PWD", "_", "SHLVL"}


class TestDescribed:
    WEATHER: ClassVar = {"name": "weather", "description": "The weather.", "input_schema": SCHEMA}

    def described(self, *paths, timeout=PATIENCE, environment=ENVIRONMENT):
        return described(paths, environment=environment, timeout=timeout)

    def error_response(self, *paths, **options):
        with pytest.raises(UsageError) as caught:
            self.described(*paths, **options)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_each_says_of_itself_what_it_prints_to_describe(self, make):
        first = make(f'[ "$*" = --describe ] || exit 3; {describing({**self.WEATHER, "strict": True, "x": 2**70})}')
        second = make(describing({"name": "b-2_", "input_schema": {}}, "; echo noise >&2"), "second")
        assert self.described(second, first) == [
            (second, {"name": "b-2_", "input_schema": {}}),
            (first, {**self.WEATHER, "strict": True, "x": 2**70}),
        ]

    def test_none_is_none(self):
        assert self.described() == []

    def test_all_are_asked_at_the_same_time(self, make, tmp_path):
        os.mkfifo(tmp_path / "one")
        one = make(f"cd {tmp_path}; : <one; {describing({'name': 'a', 'input_schema': {}})}", "a")
        other = make(f"cd {tmp_path}; : >one; {describing({'name': 'b', 'input_schema': {}})}", "b")
        assert [path for path, _ in self.described(one, other)] == [one, other]

    def test_there_is_nothing_on_its_standard_input(self, make):
        assert self.described(make(f"cat; {describing(self.WEATHER)}"))

    def test_without_a_slash_it_is_looked_for_on_the_path(self, make, tmp_path, monkeypatch):
        monkeypatch.chdir("/")
        path = make(describing(self.WEATHER), "weather")
        environment = {"PATH": f"{tmp_path}:{ENVIRONMENT['PATH']}"}
        assert self.described("weather", environment=environment) == [(path, self.WEATHER)]

    def test_with_a_slash_it_is_where_it_says(self, make, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        make(describing(self.WEATHER), "weather")
        assert self.described("./weather") == [("./weather", self.WEATHER)]

    def test_one_that_is_here_and_not_on_the_path_is_told_apart(self, make, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        make(describing(self.WEATHER), "weather")
        assert self.error_response("weather") == "there is no tool weather on PATH; use ./weather for the one here"

    def test_one_that_is_nowhere_is_named(self, tmp_path):
        assert self.error_response("no-such-tool") == "there is no tool no-such-tool on PATH"
        assert self.error_response(f"{tmp_path}/none") == f"there is no tool {tmp_path}/none"
        assert self.error_response("") == "there is no tool (without a name) on PATH"

    def test_one_that_is_not_executable_is_named_and_how_to_make_it_so(self, make, tmp_path):
        path = make("", "my tool")
        Path(path).chmod(0o644)
        assert self.error_response(path) == f"the tool {path} is not executable: chmod +x '{path}'"
        assert self.error_response(f"{tmp_path}/") == f"the tool {tmp_path}/ is a directory"

    def test_one_that_the_system_cannot_run_is_named(self, make, tmp_path):
        plain = tmp_path / "plain"
        plain.write_text("echo hello\n")
        plain.chmod(0o755)
        reason = "it is not a program; a script begins with #! and its interpreter"
        assert (
            self.error_response(str(plain)) == f"the tool {plain} cannot describe itself: cannot be started: {reason}"
        )
        assert "the interpreter in its first line does not exist" in self.error_response(
            make("", interpreter="/no/such/interpreter")
        )

    @pytest.mark.parametrize(
        ("script", "why"),
        [
            ("echo oh >&2; echo no >&2; exit 3", "--describe exited with status 3: oh no"),
            ("exit 4", "--describe exited with status 4"),
            ("kill -9 $$", "--describe ended by SIGKILL"),
            ("sleep 100", "took longer than 0.5 s and was killed"),
            ("yes", "printed more than 1048576 bytes and was killed"),
            ("", "--describe printed no JSON object"),
            ("echo '[]'", "--describe printed no JSON object"),
            ("echo '{} {}'", "--describe printed no JSON object"),
        ],
    )
    def test_one_that_cannot_describe_itself_is_rejected(self, make, script, why):
        path = make(script)
        timeout = 0.5 if script == "sleep 100" else PATIENCE
        assert self.error_response(path, timeout=timeout) == f"the tool {path} cannot describe itself: {why}"

    @pytest.mark.parametrize("name", [None, 3, "", "a b", "a.b", "é", "x" * 129, "a\n"])
    def test_a_name_that_the_api_would_reject_is_rejected(self, make, name):
        path = make(describing({"name": name, "input_schema": SCHEMA}))
        expected = f"the tool {path} needs a name of 1 to 128 letters, digits, _ and -, not {name!r}"
        assert self.error_response(path) == expected

    @pytest.mark.parametrize("schema", [{}, {"input_schema": None}, {"input_schema": "x"}, {"input_schema": []}])
    def test_a_schema_that_is_not_an_object_is_rejected(self, make, schema):
        path = make(describing({"name": "a", **schema}))
        assert self.error_response(path) == f"the tool {path} needs an object as its input_schema"

    def test_a_name_that_two_share_is_rejected(self, make):
        one, other = make(describing(self.WEATHER), "one"), make(describing(self.WEATHER), "other")
        assert self.error_response(one, other) == f"the tools {one} and {other} have the same name, weather: rename one"
        assert self.error_response(one, one) == f"the tools {one} and {one} have the same name, weather: rename one"


class TestResult:
    @pytest.mark.usefixtures("_both_ways")
    def test_the_input_is_one_line_of_json_and_the_output_the_result(self, run):
        assert run("cat", city="Zürich", days=[1, 2.5, None], large=2**70) == {
            "content": f'{{"city":"Zürich","days":[1,2.5,null],"large":{2**70}}}'
        }
        assert run('read -r line && echo "$line"') == {"content": "{}"}

    @pytest.mark.parametrize(
        ("script", "content"),
        [
            ("echo 21 degrees", "21 degrees"),
            ("printf 'a\\n\\n'", "a\n"),
            ("printf ' a \\r\\n'", " a \r"),
            ("printf 'a\\377\\303\\251'", "a\ufffdé"),
            ("true", "(no output)"),
            ("echo; echo", "(no output)"),
            ("echo out; echo noise >&2", "out"),
        ],
    )
    def test_the_output_is_text_without_its_final_newline(self, run, script, content):
        assert run(script) == {"content": content}

    @pytest.mark.usefixtures("_both_ways")
    @pytest.mark.parametrize(
        ("script", "content"),
        [
            ("echo out; echo ' no such city ' >&2; exit 1", "no such city"),
            ("echo out; exit 1", "out"),
            ("exit 7", "exited with status 7"),
            ("kill -SEGV $$", "ended by SIGSEGV"),
            (f"kill -{signal.SIGRTMIN + 3} $$", f"ended by signal {signal.SIGRTMIN + 3}"),
            ("echo last words >&2; kill -TERM $$", "last words"),
        ],
    )
    def test_a_program_that_fails_is_an_error_with_what_it_said(self, run, script, content):
        assert run(script) == {"content": content, "is_error": True}

    def test_of_a_long_complaint_the_end_is_told(self, run):
        for descriptor in (1, 2):
            content = run(f"seq 100000 >&{descriptor}; exit 1")["content"]
            assert len(content) == 2000
            assert content.endswith("\n99999\n100000")

    @pytest.mark.usefixtures("_both_ways")
    def test_one_that_takes_too_long_is_killed(self, run):
        start = time.monotonic()
        assert run("echo out; sleep 100", timeout=0.3) == {
            "content": "took longer than 0.3 s and was killed",
            "is_error": True,
        }
        assert 0.3 <= time.monotonic() - start < 5

    def test_without_a_limit_it_may_take_its_time(self, run):
        assert run("sleep 0.3; echo done", timeout=None) == {"content": "done"}

    @pytest.mark.usefixtures("_both_ways")
    def test_one_that_prints_too_much_is_killed(self, run):
        assert run("head -c 100000 /dev/zero | tr '\\0' x", max_bytes=100000) == {"content": "x" * 100000}
        expected = {"content": "printed more than 99999 bytes and was killed", "is_error": True}
        assert run("head -c 100000 /dev/zero | tr '\\0' x", max_bytes=99999) == expected
        assert run("yes", max_bytes=99999, timeout=None) == expected

    def test_endless_complaints_cost_no_memory(self, run):
        run("yes >&2", timeout=0.05)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert "took longer" in run("yes >&2", timeout=0.5)["content"]
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 16384

    @pytest.mark.parametrize("script", ["echo done", "exec <&-; sleep 0.1; echo done", "head -c 9 >&2; echo done"])
    def test_one_that_does_not_read_its_input_is_none_the_worse(self, run, script):
        assert run(script, text="x" * 3_000_000) == {"content": "done"}

    def test_much_goes_in_and_out_at_the_same_time(self, run):
        text = "é" * 4_000_000
        assert run("tee /dev/stderr", text=text, max_bytes=1 << 24)["content"] == f'{{"text":"{text}"}}'

    @pytest.mark.usefixtures("_both_ways")
    def test_output_that_is_closed_early_is_not_the_end(self, run):
        assert run("echo done; exec >&- 2>&-; sleep 0.2; exit 5") == {"content": "done", "is_error": True}
        assert "took longer" in run("exec >&- 2>&-; sleep 100", timeout=0.3)["content"]

    def test_a_program_that_is_gone_is_an_error(self, tmp_path):
        gone = Program(str(tmp_path / "gone"), {"name": "tool"})
        (block,) = results([call()], [gone], environment=ENVIRONMENT, timeout=PATIENCE)
        assert block["is_error"]
        assert block["content"].startswith("cannot be started: it no longer exists, or")

    def test_an_input_that_cannot_be_json_is_rejected(self, run):
        with pytest.raises(ToolError, match=r"^the input of tool tool cannot be written as JSON"):
            run("cat", number_=object())


class TestResults:
    def results(self, calls, *programs, timeout=PATIENCE):
        return results(calls, programs, environment=ENVIRONMENT, timeout=timeout)

    def test_they_are_in_the_order_of_the_calls(self, make, tmp_path):
        os.mkfifo(tmp_path / "fifo")
        slow = Program(make(f"read -r x <{tmp_path}/fifo; echo slow", "slow"), {"name": "slow"})
        fast = Program(make(f"echo x >{tmp_path}/fifo; echo fast", "fast"), {"name": "fast"})
        calls = [call("slow", 0), call("none", 1), call("fast", 2)]
        assert self.results(calls, fast, slow) == [
            {"type": "tool_result", "tool_use_id": "toolu_0", "content": "slow"},
            {"type": "tool_result", "tool_use_id": "toolu_1", "content": "there is no tool none", "is_error": True},
            {"type": "tool_result", "tool_use_id": "toolu_2", "content": "fast"},
        ]

    def test_only_what_can_run_is_asked_about_and_what_may_not_is_an_error(self, make, tmp_path):
        program = Program(make(f"cat; echo >> {tmp_path}/ran"), {"name": "tool"})
        cut = {**call(number=2), "input": {}, "partial_json": '{"a'}
        asked = []

        def may_run(name, given):
            asked.append((name, given, (tmp_path / "ran").exists()))
            return b"3" not in given

        calls = [call("none", 1), cut, call(number=3, n=3), call(number=4, n=4)]
        blocks = results(calls, [program], environment=ENVIRONMENT, timeout=PATIENCE, may_run=may_run)
        assert asked == [("tool", b'{"n":3}\n', False), ("tool", b'{"n":4}\n', False)]
        assert [block.get("is_error", False) for block in blocks] == [True, True, True, False]
        assert blocks[2]["content"] == "the user declined this call: it was not run"

    def test_no_calls_have_no_results(self):
        assert self.results([]) == []

    def test_fifty_calls_run_together(self, make, tmp_path):
        """Each waits for the next one to open its pipe, and only the last waits for nobody."""
        for number in range(50):
            os.mkfifo(tmp_path / f"fifo{number}")
        script = f"""cd {tmp_path}; read -r line; n=${{line#*:}}; n=${{n%?}}
            [ $n = 49 ] || : <fifo$n; [ $n = 0 ] || : >fifo$((n - 1)); echo $n"""
        program = Program(make(script), {"name": "tool"})
        blocks = self.results([call(number=number, n=number) for number in range(50)], program)
        assert [(block["tool_use_id"], block["content"]) for block in blocks] == [
            (f"toolu_{number}", str(number)) for number in range(50)
        ]

    def test_hundreds_of_calls_need_no_more_descriptors_than_there_are(self, make):
        program = Program(make("cat"), {"name": "tool"})
        with at_most_descriptors(256):
            blocks = self.results([call(number=number, n=number) for number in range(300)], program)
        assert [block["content"] for block in blocks] == [f'{{"n":{number}}}' for number in range(300)]

    def test_a_descriptor_beyond_the_limit_stops_nothing(self, make):
        os.dup2(2, 300)  # inherited, as from a shell with a higher limit
        try:
            with at_most_descriptors(256):
                (block,) = self.results([call()], Program(make("cat"), {"name": "tool"}))
        finally:
            os.close(300)
        assert block["content"] == "{}"

    def test_where_there_are_no_descriptors_at_all_it_is_an_error_of_the_call(self, make):
        program = Program(make("cat"), {"name": "tool"})
        with at_most_descriptors(6):
            (block,) = self.results([call()], program)
        assert block["content"] == "cannot be started: too many open files"
        assert block["is_error"]

    def test_the_member_of_a_toolset_is_answered_as_such(self, make):
        program = Program(make("cat"), {"name": "click"})
        (block,) = self.results([{**call("click"), "toolset_name": "computer"}], program)
        assert block["toolset_name"] == "computer"
        (block,) = self.results([{**call("click"), "toolset_name": None}], program)
        assert "toolset_name" not in block

    @settings(max_examples=20)
    @given(st.dictionaries(st.text(), st.text() | st.integers() | st.none()))
    def test_whatever_the_input_it_arrives(self, arguments):
        program = Program("/bin/cat", {"name": "tool"})
        (block,) = self.results([{**call(), "input": arguments}], program)
        assert json.loads(block["content"]) == arguments


class TestWhatAProgramIsGiven:
    def test_three_descriptors_and_no_other(self, run, tmp_path):
        with open(tmp_path / "ours", "w") as ours:
            os.set_inheritable(ours.fileno(), True)
            shown = run("import os; print(*os.listdir('/dev/fd'))", interpreter=sys.executable)["content"]
            assert os.get_inheritable(ours.fileno())
        assert sorted(shown.split()) == ["0", "1", "2", "3"]  # the last one is the listing's

    def test_a_session_of_its_own(self, run):
        group, own = run("cut -d' ' -f5,6 /proc/$$/stat; echo $$ $$")["content"].split("\n")
        assert group == own

    def test_signals_that_act_as_usual(self, run):
        status = dict(line.split(":\t") for line in run("cat /proc/self/status")["content"].splitlines())
        assert int(status["SigBlk"], 16) == 0
        assert not int(status["SigIgn"], 16) & (1 << signal.SIGPIPE - 1)

    def test_no_shell_in_between(self, make):
        program = Program(make("echo $0", "a;b $(c)"), {"name": "tool"})
        (block,) = results([call()], [program], environment=ENVIRONMENT, timeout=PATIENCE)
        assert block["content"] == program.path


@pytest.mark.usefixtures("_both_ways")
class TestNothingStays:
    @pytest.fixture(autouse=True)
    def _is_quick(self, monkeypatch):
        monkeypatch.setattr(processes, "_LINGER", 0.3)

    FAMILY = "echo $$; sleep 1000 & echo $!; timeout 1000 sh -c 'echo $$; sleep 1000 & echo $!; wait' &"

    def pids(self, path):
        return list(map(int, path.read_text().split()))

    def test_a_timeout_ends_the_whole_family(self, run, tmp_path):
        """Even those that timeout(1) has put into a process group of their own."""
        run(f"({self.FAMILY} wait) >{tmp_path}/pids; wait", timeout=0.5)
        pids = self.pids(tmp_path / "pids")
        assert len(pids) == 4
        assert all(map(ends, pids))

    def test_too_much_output_ends_the_whole_family(self, run, tmp_path):
        run(f"sleep 1000 & echo $! >{tmp_path}/pids; yes", max_bytes=1000)
        assert all(map(ends, self.pids(tmp_path / "pids")))

    @pytest.mark.parametrize("holds", ["", ">/dev/null", "2>/dev/null"])
    def test_who_holds_the_output_of_a_program_that_has_ended_is_not_waited_for(self, run, tmp_path, holds):
        start = time.monotonic()
        block = run(f"sleep 1000 {holds} & echo $! >{tmp_path}/pids; echo done", timeout=60)
        assert block == {"content": "done"}
        assert time.monotonic() - start < 10
        assert all(map(ends, self.pids(tmp_path / "pids")))

    def test_who_holds_it_a_little_longer_is_heard(self, run, monkeypatch):
        monkeypatch.setattr(processes, "_LINGER", PATIENCE)
        assert run("(sleep 0.1; echo late) & echo early") == {"content": "early\nlate"}

    def test_the_limit_holds_for_them_too(self, run, monkeypatch):
        monkeypatch.setattr(processes, "_LINGER", 1000)
        assert run("sleep 1000 & echo done", timeout=0.2) == {"content": "done"}

    def test_a_daemon_that_holds_nothing_is_let_live(self, run, tmp_path):
        assert run(f"sleep 1000 >/dev/null 2>&1 & echo $! >{tmp_path}/pids; echo done") == {"content": "done"}
        (pid,) = self.pids(tmp_path / "pids")
        os.kill(pid, 0)
        os.kill(pid, signal.SIGKILL)
        assert ends(pid)

    def test_a_daemon_that_holds_the_output_in_a_session_of_its_own_is_not_waited_for(self, run, tmp_path):
        assert run(f"setsid sleep 1000 & echo $! >{tmp_path}/pids; echo done") == {"content": "done"}
        (pid,) = self.pids(tmp_path / "pids")
        os.kill(pid, signal.SIGKILL)
        assert ends(pid)


DRIVER = """
import os, signal, sys
from streamcli.turns.tools import Program, results

class Ended(BaseException):
    pass

def end(number, frame):
    raise Ended

path, count = sys.argv[1], int(sys.argv[2])
calls = [{"id": str(n), "name": "tool", "input": {"text": "x" * 1000000}} for n in range(count)]

def run():
    results(calls, [Program(path, {"name": "tool"})], environment=os.environ, timeout=None)

def is_clean(descriptors):
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return os.listdir("/dev/fd") == descriptors
"""


class TestSignals:
    def driver(self, *argv, script, **environment):
        environment = {**ENVIRONMENT, "PYTHONPATH": str(Path(tools.__file__).parent.parent), **environment}
        return subprocess.Popen([sys.executable, "-c", DRIVER + script, *argv], env=environment, stdout=subprocess.PIPE)

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_ends_every_program_with_its_children(self, make, tmp_path, number):
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)
        path = make(f"sleep 1000 & timeout 1000 sleep 1001 & echo $$ $! >{fifo}; wait")
        mark = f"{tmp_path}/signals"
        script = f"""
signal.signal({number}, end)
try:
    run()
except Ended:
    sys.exit(0 if is_clean(os.listdir("/dev/fd")) else 1)
"""
        with self.driver(path, "3", script=script, MARK=mark) as process:
            pids = []
            while len(pids) < 6:
                pids += map(int, fifo.read_text().split())
            assert len(marked(mark)) >= 3 * 3 + 1
            process.send_signal(number)
            assert process.wait(PATIENCE) == 0
        assert all(map(ends, pids))
        assert all(map(ends, marked(mark)))

    def test_a_signal_at_any_moment_leaves_nothing(self, make, tmp_path):
        """Between the making of a process and the note of it, above all: at hundreds of moments, 30 µs apart."""
        mark = f"{tmp_path}/any-moment"
        script = """
signal.signal(signal.SIGALRM, end)
descriptors, interrupted = os.listdir("/dev/fd"), 0
for step in range(1, 201):
    try:
        signal.setitimer(signal.ITIMER_REAL, step * 30e-6)
        run()
    except Ended:
        interrupted += 1
    if not is_clean(descriptors):
        sys.exit(f"something is left after {step}")
print(interrupted)
"""
        with self.driver(make("sleep 1000"), "4", script=script, MARK=mark) as process:
            out, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        assert int(out) == 200
        assert all(map(ends, marked(mark)))

    def test_where_sigchld_is_ignored_nothing_waits_for_ever(self, make):
        script = """
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print(results(calls, [Program(path, {"name": "tool"})], environment=os.environ, timeout=5)[0]["content"])
"""
        with self.driver(make("echo done"), "1", script=script) as process:
            out, _ = process.communicate(timeout=PATIENCE)
        assert out == b"done\n"
