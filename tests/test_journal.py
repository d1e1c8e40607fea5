"""streamcli.turns.journal: whatever befalls process, disk or file, whole lines stay and nobody's are lost.

Slow is what is done at every byte of a file, and at every step of what is done to it.
"""

import contextlib
import errno
import fcntl
import itertools
import json
import os
import resource
import stat
import subprocess
import sys
import tempfile
import threading
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import streamcli.turns.journal
from streamcli.errors import OutputError, UsageError
from streamcli.turns.journal import Journal

OLD = b'{"old":"\xc3\xa9","n":[1,{}]}\n'
NEW = b'{"new":1}\n{"new":2}\n'
NEXT = b'{"next":true}\n'

OBJECTS = st.dictionaries(st.text(max_size=3), st.text() | st.integers() | st.none(), max_size=3)
CHANGE = "another program {} it meanwhile"


def never_busy():
    raise AssertionError("nobody else holds the file")


def journal(path, *, mode=0o600, busy=never_busy):
    return Journal(str(path), mode=mode, busy=busy)


def lines_of(path):
    with journal(path) as opened:
        return list(opened.lines())


def split(data):
    return data.splitlines()


def encoded(objects):
    return b"".join(json.dumps(value).encode() + b"\n" for value in objects)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.jsonl"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    mounted = tmp_path / "small"
    mounted.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", mounted], check=False).returncode:
        pytest.skip("nothing can be mounted here")
    yield mounted
    subprocess.run(["umount", "-l", mounted], check=True)


def run(script, *args):
    """What a Python process of its own prints, as JSON."""
    words = [sys.executable, "-c", script, *map(str, args)]
    return json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE, timeout=60).stdout)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said_and_keeps_no_empty_file(path, monkeypatch, number):
    def no_locks(*_):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(fcntl, "flock", no_locks)
        with pytest.raises(OutputError) as raised:
            journal(path)
        why = os.strerror(number)[0].lower() + os.strerror(number)[1:]
        said = f"cannot lock {path}: {why}: its file system has no locks; use a file elsewhere"
        assert raised.value.message == said
        assert not path.exists()
        path.write_bytes(OLD)
        with pytest.raises(OutputError):
            journal(path)
        assert path.read_bytes() == OLD


class TestLines:
    def test_what_was_appended_is_there_when_it_is_opened_again(self, path):
        with journal(path) as first:
            assert first.empty
            first.append(OLD)
            first.append(NEW)
            assert not first.empty
            assert list(first.lines()) == split(OLD + NEW)
        assert path.read_bytes() == OLD + NEW
        assert lines_of(path) == split(OLD + NEW)

    @given(st.lists(st.lists(OBJECTS, max_size=4), max_size=4), st.booleans())
    def test_any_objects_come_back_in_order(self, appends, again):
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, "file")
            held = journal(path)
            for objects in appends:
                held.append(encoded(objects))
                if again:
                    held.close()
                    held = journal(path)
            held.close()
            assert [json.loads(line) for line in lines_of(path)] == list(itertools.chain(*appends))

    def test_appending_nothing_changes_nothing(self, path):
        path.write_bytes(OLD[:-1])
        with journal(path) as held:
            held.append(b"")
        assert path.read_bytes() == OLD[:-1]

    def test_reading_half_of_them_does_not_move_where_the_next_append_goes(self, path):
        path.write_bytes(OLD + NEW)
        with journal(path) as held:
            some = held.lines()
            assert next(some) == OLD[:-1]
            held.append(NEXT)
            assert next(some) == split(NEW)[0]
        assert path.read_bytes() == OLD + NEW + NEXT

    @pytest.mark.parametrize("length", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3 << 20])
    def test_a_line_may_be_longer_than_what_is_read_at_a_time(self, path, length):
        line = json.dumps({"a": "x" * length}).encode()
        path.write_bytes(OLD + line + b"\n" + NEXT)
        assert lines_of(path) == [OLD[:-1], line, NEXT[:-1]]

    def test_only_a_line_at_a_time_is_in_memory(self, path):
        line = b'{"a":"' + b"x" * (1 << 20) + b'"}\n'
        path.write_bytes(line * 24)
        tracemalloc.start()
        with journal(path) as held:
            assert sum(len(line) for line in held.lines()) == len(line) * 24 - 24
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 8 << 20

    def test_what_follows_so_many_lines_goes_with_the_next_append(self, path):
        path.write_bytes(OLD + NEW)
        with journal(path) as held:
            held.keep(2)
            assert list(held.lines()) == split(OLD + NEW)[:2]
            assert path.read_bytes() == OLD + NEW
            held.append(NEXT)
        assert path.read_bytes() == OLD + split(NEW)[0] + b"\n" + NEXT

    def test_keeping_all_of_them_keeps_the_last_that_has_no_end(self, path):
        path.write_bytes(OLD + NEW[:-1])
        with journal(path) as held:
            held.keep(3)
            held.append(NEXT)
        assert path.read_bytes() == OLD + NEW + NEXT


class TestAFileThatAPersonEdited:
    @pytest.mark.parametrize(
        ("content", "lines"),
        [
            (OLD + NEXT[:-1], split(OLD + NEXT)),
            (b"{}\r\n{}\r\n", [b"{}", b"{}"]),
            (b"{}\r\n{}", [b"{}", b"{}"]),
            (b"\n\n{}\n\n", [b"", b"", b"{}", b""]),
            (b"{}\n  ", [b"{}", b"  "]),
            (b"\xef\xbb\xbf{}\n{}\n", [b"{}", b"{}"]),
            (b"\xef\xbb\xbf{}", [b"{}"]),
            (b"\xef\xbb\xbf", [b""]),
        ],
    )
    def test_it_is_read_and_gets_its_last_line_end_before_what_is_appended(self, path, content, lines):
        path.write_bytes(content)
        with journal(path) as held:
            assert (list(held.lines()), held.torn) == (lines, False)
            held.append(NEXT)
            held.append(NEXT)
        ended = content if content.endswith(b"\n") else content + b"\n"
        assert path.read_bytes() == ended + NEXT + NEXT

    @pytest.mark.parametrize(
        "content",
        [
            b"remember the milk",
            b"x",
            b"[1, 2",
            b'{"a" 1}',
            b'{"a":1}}',
            b'{"a":1} {"b"',
            OLD + b"remember the milk",
            OLD + b'{"a": tru,',
            OLD + b"\0\0\0\x18ftypmp42\0\0\0",
            OLD + b'\0"a":1}\nremember the milk\n',
            OLD + b'\0"a":\n{}\n',
            OLD + b'{"a":"\0"}\n{}\n',
            OLD[:-1] + b"\0remember the milk",
            OLD[:-1] + b"\0tru",
            b"\0\0\0\x18ftypmp42",
            b"\x7fELF\0\0\n\0\0",
            '{"role":"user"}'.encode("utf-16"),
            '{"role":"user"}\n{"role":"user"}\n'.encode("utf-16"),
            '{"role":"user"}'.encode("utf-16-be"),
        ],
    )
    def test_what_no_append_can_have_left_is_returned_and_never_overwritten(self, path, content):
        path.write_bytes(content)
        with journal(path) as held:
            assert not held.torn
            assert b"\n".join(held.lines()) == content.removesuffix(b"\n")
            held.append(NEXT)
        assert path.read_bytes() == content.removesuffix(b"\n") + b"\n" + NEXT


class TestATornTail:
    @pytest.mark.parametrize("before", [b"", OLD], ids=["first", "later"])
    def test_a_file_cut_anywhere_has_its_whole_lines(self, path, before, without_sync):
        last = '{"role":"user","content":[{"t":"é😀\\n\\u00e9"},-1.5e+3,true,null,{}]}\n'.encode()
        for length in range(1, len(last) - 1):
            cut = before + last[:length]
            path.write_bytes(cut)
            with journal(path) as held:
                assert held.torn
                assert list(held.lines()) == split(before)
                assert held.empty == (not before)
                assert path.read_bytes() == cut
                held.append(NEXT)
                assert not held.torn
            assert path.read_bytes() == before + NEXT

    @pytest.mark.parametrize(
        "tail",
        [
            b"\0",
            b"\0" + NEW[1:],
            b"\0" + NEW[1:-4],
            b"\0" + NEW[1:12],
            b"\0" * 5000,
            b'{"a":"b\0\0\0',
            b"\0" + NEW[1:] + b"\0\0\0",
        ],
    )
    @pytest.mark.parametrize("before", [b"", OLD], ids=["first", "later"])
    def test_what_an_append_had_not_finished_is_left_out(self, path, before, tail):
        path.write_bytes(before + tail)
        with journal(path) as held:
            assert held.torn
            assert list(held.lines()) == split(before)
            held.append(NEXT)
        assert path.read_bytes() == before + NEXT

    @pytest.mark.parametrize("tail", [b"\0", b"\0" + NEW, b"\0" + NEW[:-4], b"\0\0\0"])
    @pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["", "marked"])
    def test_a_line_without_its_end_is_kept(self, path, mark, tail):
        path.write_bytes(mark + OLD[:-1] + tail)
        with journal(path) as held:
            assert held.torn
            assert list(held.lines()) == split(OLD)
            held.append(NEXT)
        assert path.read_bytes() == mark + OLD + NEXT


def opened_and_appended(path):
    with journal(path) as held:
        held.append(NEW)


def opened_and_replaced(path):
    with journal(path) as held:
        held.replace([*(line + b"\n" for line in held.lines()), NEW])


# What the file holds at first, and after.
STATES = {
    "missing": (None, NEW),
    "empty": (b"", NEW),
    "whole": (OLD, OLD + NEW),
    "unended": (OLD[:-1], OLD + NEW),
    "torn": (OLD + NEXT[:-3], OLD + NEW),
    "torn by an append": (OLD[:-1] + b"\0" + NEXT[:-3], OLD + NEW),
}
WORKS = [opened_and_appended, opened_and_replaced]
states = pytest.mark.parametrize("state", STATES)


class Step:
    """Does `act` when the journal has begun or ended so many calls: which is when handlers of signals run."""

    def __init__(self, number, act, events=("call", "return", "c_call", "c_return", "c_exception")):
        self.left = number
        self.act = act
        self.events = events

    @property
    def reached(self):
        return self.left <= 0

    def __enter__(self):
        sys.setprofile(self.count)
        return self

    def __exit__(self, *exc_info):
        sys.setprofile(None)

    def count(self, frame, event, argument):
        self.left -= frame.f_code.co_filename == streamcli.turns.journal.__file__ and event in self.events
        if self.reached:
            sys.setprofile(None)
            self.act()


def interrupt():
    raise KeyboardInterrupt


def steps(work):
    """`work(step)` for an interruption at each step, one after the other, until there are no more steps."""
    for number in itertools.count(1):
        step = Step(number, interrupt)
        work(step)
        if not step.reached:
            return


def descriptors():
    names = os.listdir("/dev/fd")
    return {int(name) for name in names if os.path.lexists(f"/dev/fd/{name}")}  # without the one of the listing


@contextlib.contextmanager
def closed_afterwards():
    """What a signal keeps from being closed is closed, as the end of the process would."""
    before = descriptors()
    yield
    for lost in descriptors() - before:
        os.close(lost)


def begin(path, state):
    path.unlink(missing_ok=True)
    content = STATES[state][0]
    if content is not None:
        path.write_bytes(content)


def has_all_or_none(path, state):
    """Whether the file has the new lines: all of them or none, and the next append works."""
    after = STATES[state][1]
    before = after.removesuffix(NEW)
    with journal(path) as held:
        lines = list(held.lines())
        assert lines in (split(before), split(after))
        held.append(NEXT)
    assert lines_of(path) == [*lines, NEXT[:-1]]
    return lines == split(after)


KILLED = """
import itertools, json, os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_journal
os.fsync = lambda fd: None  # nothing is switched off
def die():
    os.kill(os.getpid(), signal.SIGKILL)
for work, state in itertools.product(test_journal.WORKS, test_journal.STATES):
    directory = Path(sys.argv[2], work.__name__, state)
    directory.mkdir(parents=True)
    for number in itertools.count(1):
        test_journal.begin(directory / str(number), state)
        child = os.fork()
        if not child:
            with test_journal.Step(number, die, ["c_call"]):  # between two of them no file changes
                work(directory / str(number))
            os._exit(0)
        if os.waitpid(child, 0)[1] != signal.SIGKILL:
            break
print(1)
"""


class TestInterrupted:
    @pytest.mark.slow
    def test_a_process_killed_at_any_step_leaves_all_or_nothing(self, tmp_path, without_sync):
        run(KILLED, Path(__file__).parent, tmp_path)
        for work, state in itertools.product(WORKS, STATES):
            killed = tmp_path / work.__name__ / state
            count = sum(name.isdigit() for name in os.listdir(killed))
            outcomes = [has_all_or_none(killed / str(number), state) for number in range(1, count + 1)]
            assert outcomes == sorted(outcomes)
            assert {*outcomes} == {False, True}

    # Python ignores what a handler raises just when a generator is given up.
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    @states
    @pytest.mark.parametrize("work", WORKS)
    def test_a_signal_at_any_step_leaves_all_or_nothing(self, path, state, work, without_sync):
        def interrupted(step):
            begin(path, state)
            with closed_afterwards(), contextlib.suppress(KeyboardInterrupt), step:
                work(path)

        outcomes = []
        steps(lambda step: (interrupted(step), outcomes.append(has_all_or_none(path, state))))
        assert {*outcomes} == {False, True}

    @states
    def test_an_append_that_a_signal_broke_off_can_be_done_again(self, path, state, without_sync):
        before = split(STATES[state][1].removesuffix(NEW))

        def interrupted(step):
            begin(path, state)
            with journal(path) as held:
                with contextlib.suppress(KeyboardInterrupt), step:
                    held.append(NEW)
                if list(held.lines()) == before:
                    held.append(NEW)
            assert path.read_bytes() == STATES[state][1]

        steps(interrupted)

    def test_a_power_cut_finds_the_first_byte_only_where_the_others_are(self, path, monkeypatch):
        called = []
        for name in ("pwrite", "fsync"):
            real = getattr(os, name)
            monkeypatch.setattr(os, name, lambda *args, n=name, f=real: called.append((n, args)) or f(*args))
        with journal(path) as held:
            held.append(NEW)
        assert [name for name, _ in called] == ["pwrite", "fsync", "pwrite", "fsync", "fsync"]
        assert [args[2] for name, args in called if name == "pwrite"] == [1, 0]

    def test_a_replacement_whose_lines_fail_changes_nothing(self, path):
        path.write_bytes(OLD)

        def failing():
            yield NEW
            raise UsageError("a line is wrong")

        with journal(path) as held:
            with pytest.raises(UsageError, match="a line is wrong"):
                held.replace(failing())
            held.append(NEXT)
        assert path.read_bytes() == OLD + NEXT
        assert os.listdir(path.parent) == [path.name]


class TestAFullDisk:
    @pytest.mark.parametrize("content", [OLD, OLD[:-1]], ids=["whole", "unended"])
    @pytest.mark.parametrize("room", [0, 100, 4096, 20_000])
    def test_it_leaves_the_file_byte_for_byte_as_it_was(self, small_disk, content, room):
        path = small_disk / "file"
        path.write_bytes(content)
        filler = small_disk / "filler"
        with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
            while True:
                file.write(b"x" * 1024)
        os.truncate(filler, filler.stat().st_size - room)
        with journal(path) as held:
            for work in (held.append, lambda data: held.replace([data])):
                with pytest.raises(OutputError, match=f"^cannot write to {path}: no space left on device$"):
                    work(b'{"a":"%s"}\n' % (b"x" * 50_000))
                assert path.read_bytes() == content
            assert {*os.listdir(small_disk)} == {"file", "filler"}
            filler.unlink()
            held.append(NEXT)
        assert path.read_bytes() == OLD + NEXT

    @pytest.mark.parametrize("content", [OLD, OLD[:-1]], ids=["whole", "unended"])
    def test_so_does_a_limit_on_the_size_of_files(self, path, content):
        path.write_bytes(content)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        with journal(path) as held:
            for limit in range(len(content), len(content) + len(NEW)):
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
                try:
                    with pytest.raises(OutputError, match=f"^cannot write to {path}: file too large$"):
                        held.append(NEW)
                finally:
                    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
                assert path.read_bytes() == content
            held.append(NEW)
        assert path.read_bytes() == OLD + NEW

    def test_a_file_that_was_made_for_nothing_is_removed(self, small_disk):
        (small_disk / "filler").write_bytes(b"x" * 60_000)
        with journal(small_disk / "file") as held, pytest.raises(OutputError, match="no space left"):
            held.append(b'{"a":"%s"}\n' % (b"x" * 60_000))
        assert os.listdir(small_disk) == ["filler"]


HOLDER = """
import json, sys
from streamcli.turns.journal import Journal
path, count = sys.argv[1], int(sys.argv[2])
waits = []
for number in range(count):
    with Journal(path, mode=0o600, busy=lambda: waits.append(number)) as held:
        seen = [json.loads(line) for line in held.lines()]
        held.append(json.dumps({"seen": len(seen)}).encode() + b"\\n")
        if number % 7 == 0:
            held.replace([line + b"\\n" for line in held.lines()])
print(json.dumps(len(waits)))
"""

WAITER = """
import json, sys
from streamcli.turns.journal import Journal
def busy():
    print("busy", flush=True)
with Journal(sys.argv[1], mode=0o600, busy=busy) as held:
    print(json.dumps([line.decode() for line in held.lines()]))
    held.append(b'{"waiter":1}\\n')
"""


@contextlib.contextmanager
def waiter(path):
    """A process that waits for the file."""
    words = [sys.executable, "-c", WAITER, str(path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "busy\n"
        yield process


class TestTogether:
    def test_processes_that_append_and_replace_at_once_lose_nothing(self, path):
        count, waits = 60, []
        threads = [threading.Thread(target=lambda: waits.append(run(HOLDER, path, count))) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(waits) == 3
        assert [json.loads(line) for line in lines_of(path)] == [{"seen": number} for number in range(3 * count)]

    def test_the_second_says_that_it_waits_and_sees_what_the_first_wrote(self, path):
        with journal(path) as held, waiter(path) as process:
            held.append(OLD)
            held.close()
            assert json.loads(process.stdout.readline()) == [OLD[:-1].decode()]
        assert lines_of(path) == [OLD[:-1], b'{"waiter":1}']

    def test_the_second_gets_the_file_that_took_the_place_of_the_one_it_waited_for(self, path):
        with journal(path) as held, waiter(path) as process:
            held.replace([NEW])
            held.append(NEXT)
            held.close()
            assert json.loads(process.stdout.readline()) == [line.decode() for line in split(NEW + NEXT)]
        assert lines_of(path) == [*split(NEW + NEXT), b'{"waiter":1}']

    def test_the_second_makes_the_file_again_that_the_first_made_for_nothing(self, path):
        with journal(path) as held, waiter(path) as process:
            held.close()
            assert process.stdout.readline() == "[]\n"
        assert lines_of(path) == [b'{"waiter":1}']

    def test_a_second_that_will_not_wait_says_so_instead(self, path):
        def reject():
            raise UsageError("somebody else has it")

        with journal(path) as held:
            with pytest.raises(UsageError, match="somebody else has it"):
                journal(path, busy=reject)
            held.append(OLD)
        assert lines_of(path) == [OLD[:-1]]

    def test_a_signal_ends_the_waiting(self, path):
        with journal(path) as held, waiter(path) as process:
            process.terminate()
            assert process.wait() == -15
            held.append(OLD)
        assert lines_of(path) == [OLD[:-1]]

    def test_a_process_started_meanwhile_does_not_hold_it_on(self, path):
        with journal(path) as held:
            child = subprocess.Popen(["sleep", "60"], close_fds=False)
            held.append(OLD)
        try:
            assert lines_of(path) == [OLD[:-1]]
        finally:
            child.kill()
            child.wait()


def shrink(path):
    os.truncate(path, 0)


def grow(path):
    with open(path, "ab") as file:
        file.write(b"somebody else's\n")


def swap(path):
    other = path.with_name("other")
    other.write_bytes(b"somebody else's\n")
    other.rename(path)


class TestAnotherProgramMeanwhile:
    @pytest.mark.parametrize(
        ("change", "said"),
        [(shrink, "changed"), (grow, "changed"), (swap, "removed or replaced"), (os.unlink, "removed or replaced")],
    )
    @pytest.mark.parametrize("content", [b"", OLD, OLD + NEXT[:-3]], ids=["empty", "whole", "torn"])
    def test_what_it_wrote_stays(self, path, change, said, content):
        path.write_bytes(content)
        with journal(path) as held:
            change(path)
            if not content and change is shrink:
                return
            there = path.exists() and path.read_bytes()
            for work in (held.append, lambda data: held.replace([data])):
                with pytest.raises(OutputError, match=f"^cannot write to {path}: {CHANGE.format(said)}$"):
                    work(NEW)
        assert (path.exists() and path.read_bytes()) == there
        assert len(os.listdir(path.parent)) == path.exists()

    def test_an_empty_file_that_took_the_place_of_ours_is_not_removed(self, path):
        with journal(path):
            swap(path)
            shrink(path)
        assert path.exists()


class TestTheFile:
    @pytest.mark.parametrize("mode", [0o600, 0o644, 0o666])
    def test_it_is_made_with_its_mode_and_keeps_it(self, path, mode):
        before = os.umask(0)
        try:
            with journal(path, mode=mode) as held:
                held.append(OLD)
                assert stat.S_IMODE(path.stat().st_mode) == mode
                held.replace([NEW])
        finally:
            os.umask(before)
        assert stat.S_IMODE(path.stat().st_mode) == mode

    def test_one_that_was_there_keeps_its_own_mode_under_any_mask(self, path):
        path.write_bytes(OLD)
        path.chmod(0o664)
        before = os.umask(0o777)
        try:
            with journal(path) as held:
                held.append(NEW)
                held.replace(line + b"\n" for line in held.lines())
                held.append(NEXT)
        finally:
            os.umask(before)
        assert stat.S_IMODE(path.stat().st_mode) == 0o664
        assert path.read_bytes() == OLD + NEW + NEXT

    def test_one_that_was_made_for_nothing_is_removed(self, path):
        with journal(path):
            assert path.exists()
        assert not path.exists()

    def test_an_empty_one_that_was_there_stays(self, path):
        path.touch()
        with journal(path):
            pass
        assert path.exists()

    def test_closing_twice_is_closing_once(self, path):
        held = journal(path)
        held.close()
        held.close()

    def test_a_replacement_by_nothing_leaves_an_empty_file(self, path):
        path.write_bytes(OLD)
        with journal(path) as held:
            held.replace([])
            assert held.empty
        assert path.read_bytes() == b""

    def test_what_a_killed_replacement_left_beside_it_does_not_matter(self, path):
        path.write_bytes(OLD)
        target = path.with_name("elsewhere")
        target.write_bytes(b"precious")
        path.with_name(f".{path.name}.streamcli").symlink_to(target)
        with journal(path) as held:
            held.replace([NEW])
        assert path.read_bytes() == NEW
        assert target.read_bytes() == b"precious"

    @pytest.mark.parametrize("there", [True, False])
    def test_a_symbolic_link_stays_one(self, tmp_path, there):
        (tmp_path / "elsewhere").mkdir()
        target, link = tmp_path / "elsewhere" / "target", tmp_path / "link"
        link.symlink_to("elsewhere/target")
        if there:
            target.write_bytes(OLD)
        with journal(link) as held:
            held.append(NEW)
            held.replace([NEXT])
        assert link.is_symlink()
        assert target.read_bytes() == NEXT
        assert os.listdir(target.parent) == ["target"]

    def test_a_link_to_nothing_stays_one_when_nothing_was_appended(self, tmp_path):
        link = tmp_path / "link"
        link.symlink_to("target")
        with journal(link):
            pass
        assert os.listdir(tmp_path) == ["link"]

    @pytest.mark.parametrize("kind", ["a directory", "not a regular file"])
    def test_a_directory_and_a_pipe_are_not_regular_files(self, tmp_path, kind):
        path = tmp_path / "thing"
        path.mkdir() if kind == "a directory" else os.mkfifo(path)
        with pytest.raises(UsageError, match=f"^{path} is {kind}$"):
            journal(path)
        assert path.exists()

    @pytest.mark.parametrize("path", ["/dev/full", "/dev/null"])
    def test_nor_is_a_device(self, path):
        with pytest.raises(UsageError, match=f"^{path} is not a regular file$"):
            journal(path)

    def test_a_path_that_leads_nowhere_is_named_with_the_reason(self, tmp_path):
        (tmp_path / "file").touch()
        (tmp_path / "loop").symlink_to("loop")
        for name, reason in [
            ("none/file", "no such file or directory"),
            ("file/file", "not a directory"),
            ("loop", "too many levels of symbolic links"),
            ("x" * 300, "file name too long"),
        ]:
            with pytest.raises(OutputError) as caught:
                journal(tmp_path / name)
            assert str(caught.value) == f"cannot write to {tmp_path / name}: {reason}"
        with pytest.raises(OutputError, match="embedded null"):
            journal("a\0b")

    def test_one_that_may_not_be_written_is_rejected_before_anything_happens(self):
        with tempfile.TemporaryDirectory() as directory:
            os.chmod(directory, 0o755)
            path = Path(directory, "file")
            path.write_bytes(OLD)
            path.chmod(0o444)
            script = """
import json, os, sys
from streamcli.turns.journal import Journal
from streamcli.errors import OutputError
if os.geteuid() == 0:
    os.setuid(65534)
try:
    Journal(sys.argv[1], mode=0o600, busy=lambda: None)
except OutputError as error:
    print(json.dumps(str(error)))
"""
            assert run(script, path) == f"cannot write to {path}: permission denied"

    def test_a_fault_leaves_no_descriptor_and_no_lock(self, tmp_path):
        before = descriptors()
        with pytest.raises(UsageError):
            journal(tmp_path)
        with pytest.raises(UsageError):
            journal("/dev/null")
        assert descriptors() == before

    def test_its_lock_is_the_one_that_flock_takes(self, path):
        with journal(path), open(path, "rb") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
