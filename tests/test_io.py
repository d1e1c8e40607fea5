"""streamcli.cli.io: every byte is written or the reason is said, through real descriptors."""

import contextlib
import fcntl
import itertools
import json
import os
import signal
import stat
import subprocess
import sys
import threading

import pytest

from streamcli.cli import io
from streamcli.errors import OutputError, UsageError, status_error

LONG = bytes(range(256)) * 1024


@contextlib.contextmanager
def small_pipe(*, blocking=True):
    """Both ends of a pipe that holds one page."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(writer, blocking)
    with os.fdopen(reader, "rb", buffering=0) as reading, os.fdopen(writer, "wb", buffering=0) as writing:
        yield reading, writing


def in_thread(work, *args):
    thread = threading.Thread(target=work, args=args)
    thread.start()
    return thread


class TestDescriptor:
    @pytest.mark.parametrize("blocking", [True, False])
    def test_every_byte_arrives_however_slowly_it_is_read(self, blocking):
        with small_pipe(blocking=blocking) as (reading, writing):
            output = io.Descriptor(writing.fileno(), "the pipe")
            writer = in_thread(lambda: (output.write(LONG), output.write(b"end"), writing.close()))
            got = b"".join(iter(lambda: reading.read(1000), b""))
            writer.join()
        assert got == LONG + b"end"
        assert output.written == len(LONG) + 3

    def test_a_reader_that_closed_the_pipe_is_not_an_error_but_the_end(self):
        with small_pipe() as (reading, writing):
            reading.close()
            with pytest.raises(io.ReaderClosedPipe):
                io.Descriptor(writing.fileno(), "the pipe").write(b"a")

    def test_a_reader_that_goes_in_the_middle_is_noticed(self):
        with small_pipe(blocking=False) as (reading, writing):
            writer = in_thread(lambda: (reading.read(10), reading.close()))
            with pytest.raises(io.ReaderClosedPipe):
                io.Descriptor(writing.fileno(), "the pipe").write(LONG)
            writer.join()

    def test_signals_at_any_moment_neither_lose_nor_repeat_a_byte(self):
        """Each piece goes out whole or not at all, whatever comes between a write and the note of its count."""
        script = """
import signal, sys
from streamcli.cli.io import Descriptor

def end(number, frame):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, end)
output = Descriptor(1, "standard output")
for number in range(2000):
    try:
        signal.setitimer(signal.ITIMER_REAL, (1 + number % 200) * 2e-6)
        output.write(b"%6d\\n" % number * (1 + number % 3000))
        signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        pass
output.write(b"")
sys.stderr.write(str(output.written))
"""
        with small_pipe() as (reading, writing):
            process = subprocess.Popen([sys.executable, "-c", script], stdout=writing, stderr=subprocess.PIPE)
            writing.close()
            got = b"".join(iter(lambda: reading.read(1 << 16), b""))
            written = int(process.communicate()[1])
        assert written == len(got)
        lines = list(map(int, got.split()))
        pieces = {number: len(list(group)) for number, group in itertools.groupby(lines)}
        assert list(pieces) == sorted(set(lines))
        assert pieces == {number: 1 + number % 3000 for number in pieces}
        assert len(pieces) > 1000

    def test_a_full_disk_is_named_and_nothing_counts_as_written(self):
        output = io.opened("/dev/full", atomic=False)
        with pytest.raises(OutputError, match=r"^cannot write to /dev/full: no space left on device$"):
            output.write(b"a")
        assert not output.written
        output.failed()

    def test_writing_nothing_is_not_output(self):
        output = io.opened("/dev/full", atomic=False)
        output.write(b"")
        assert not output.written
        output.done()

    def test_a_close_that_fails_is_an_error_unless_the_run_failed_anyway(self):
        output = io.Descriptor(os.open(os.devnull, os.O_WRONLY), "the file")
        os.close(output.fd)
        with pytest.raises(OutputError, match=r"^cannot write to the file: bad file descriptor$"):
            output.done()
        output.failed()


class TestReplacedFile:
    def test_it_appears_when_the_run_succeeded(self, tmp_path):
        path = tmp_path / "out"
        output = io.opened(str(path), atomic=True)
        output.write(b"new")
        assert not path.exists()
        output.done()
        assert path.read_bytes() == b"new"
        assert os.listdir(tmp_path) == ["out"]

    def test_until_then_the_old_file_stays(self, tmp_path):
        path = tmp_path / "out"
        path.write_bytes(b"old")
        path.chmod(0o640)
        output = io.opened(str(path), atomic=True)
        output.write(b"new")
        assert path.read_bytes() == b"old"
        output.done()
        assert path.read_bytes() == b"new"
        assert stat.S_IMODE(path.stat().st_mode) == 0o640

    def test_a_run_that_failed_leaves_what_came_beside_it(self, tmp_path):
        path = tmp_path / "out"
        path.write_bytes(b"old")
        output = io.opened(str(path), atomic=True)
        output.write(b"ne")
        output.failed()
        assert path.read_bytes() == b"old"
        assert (tmp_path / "out.partial").read_bytes() == b"ne"

    def test_a_run_that_failed_with_nothing_leaves_nothing(self, tmp_path):
        io.opened(str(tmp_path / "out"), atomic=True).failed()
        assert os.listdir(tmp_path) == []

    def test_what_an_earlier_run_kept_is_replaced_by_something_only(self, tmp_path):
        kept = tmp_path / "out.partial"
        kept.write_bytes(b"from an earlier run")
        io.opened(str(tmp_path / "out"), atomic=True).failed()
        assert kept.read_bytes() == b"from an earlier run"
        sink = io.opened(str(tmp_path / "out"), atomic=True)
        sink.write(b"new")
        sink.done()
        assert kept.read_bytes() == b"from an earlier run"
        sink = io.opened(str(tmp_path / "out"), atomic=True)
        sink.write(b"ne")
        sink.failed()
        assert kept.read_bytes() == b"ne"
        assert sorted(os.listdir(tmp_path)) == ["out", "out.partial"]

    @pytest.mark.parametrize("succeeds", [True, False])
    def test_two_of_one_name_do_not_know_each_other(self, tmp_path, succeeds):
        one, other = (io.opened(str(tmp_path / "out"), atomic=True) for _ in range(2))
        for sink in (one, other, one, other):
            sink.write(b"1" if sink is one else b"2")
        (one.done if succeeds else one.failed)()
        assert (tmp_path / ("out" if succeeds else "out.partial")).read_bytes() == b"11"
        other.done()
        assert (tmp_path / "out").read_bytes() == b"22"

    @pytest.mark.parametrize("succeeds", [True, False])
    @pytest.mark.parametrize("laid", ["a link", "a link to nothing", "a pipe", "a file of another mode"])
    def test_what_lies_where_it_keeps_what_came_is_neither_followed_nor_waited_for(self, tmp_path, laid, succeeds):
        victim, kept = tmp_path / "victim", tmp_path / "out.partial"
        if laid == "a pipe":
            os.mkfifo(kept)
        elif laid == "a file of another mode":
            kept.touch(0o400)
        else:
            kept.symlink_to(victim)
        if laid == "a link":
            victim.write_bytes(b"precious")
        before = os.lstat(kept)
        sink = io.opened(str(tmp_path / "out"), atomic=True)
        sink.write(b"new")
        if succeeds:
            sink.done()
            assert os.path.samestat(os.lstat(kept), before)
        else:
            sink.failed()
            assert stat.S_ISREG(os.lstat(kept).st_mode)
            assert kept.read_bytes() == b"new"
        assert not victim.exists() or victim.read_bytes() == b"precious"

    def test_what_cannot_take_the_name_stays_under_its_own(self, tmp_path):
        (tmp_path / "out.partial").mkdir()
        sink = io.opened(str(tmp_path / "out"), atomic=True)
        sink.write(b"ne")
        sink.failed()
        (own,) = tmp_path.glob("out.partial.*")
        assert own.read_bytes() == b"ne"

    def test_it_is_no_wider_open_than_what_it_replaces(self, tmp_path):
        path = tmp_path / "out"
        path.touch()
        path.chmod(0o4600)
        sink = io.opened(str(path), atomic=True)
        (own,) = tmp_path.glob("out.partial.*")
        assert stat.S_IMODE(own.stat().st_mode) == 0o600
        sink.failed()

    def test_it_is_noted_before_a_signal_can_end_the_run(self, tmp_path):
        made = []

        def note(sink):
            signal.raise_signal(signal.SIGINT)
            made.append(sink)

        with pytest.raises(KeyboardInterrupt):
            io.opened(str(tmp_path / "out"), atomic=True, note=note)
        made[0].failed()
        assert os.listdir(tmp_path) == []

    def test_a_link_stays_and_what_it_points_at_is_replaced(self, tmp_path):
        (tmp_path / "folder").mkdir()
        (tmp_path / "link").symlink_to("folder/out")
        output = io.opened(str(tmp_path / "link"), atomic=True)
        output.write(b"new")
        output.done()
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "folder" / "out").read_bytes() == b"new"

    def test_a_folder_that_is_not_there_is_named(self, tmp_path):
        path = str(tmp_path / "missing" / "out")
        with pytest.raises(OutputError, match=f"^cannot write to {path}: no such file or directory$"):
            io.opened(path, atomic=True)


class TestOpened:
    @pytest.mark.parametrize("name", ["/dev/fd/{}", "/proc/self/fd/{}"])
    def test_a_descriptor_by_its_name_stays_open_when_ours_is_closed(self, name):
        with small_pipe() as (reading, writing):
            output = io.opened(name.format(writing.fileno()), atomic=True)
            output.write(b"a")
            output.done()
            writing.write(b"b")
            assert reading.read(2) == b"ab"

    @pytest.mark.parametrize("path", ["/dev/fd/1", "/dev/stdout", "/dev/fd/2", "/dev/stderr"])
    def test_the_standard_ones_have_names(self, path, capfd):
        output = io.opened(path, atomic=True)
        output.write(b"a")
        output.done()
        assert "".join(capfd.readouterr()) == "a"

    @pytest.mark.parametrize("number", [999_999, 10**20])
    def test_a_descriptor_that_is_not_open_is_an_error(self, number):
        with pytest.raises(OutputError, match=f"^cannot write to /dev/fd/{number}: "):
            io.opened(f"/dev/fd/{number}", atomic=True)

    @pytest.mark.parametrize("atomic", [True, False])
    def test_a_device_is_never_replaced(self, atomic):
        output = io.opened(os.devnull, atomic=atomic)
        output.write(b"a")
        output.done()
        assert stat.S_ISCHR(os.stat(os.devnull).st_mode)

    def test_a_named_pipe_is_written_to(self, tmp_path):
        path = tmp_path / "pipe"
        os.mkfifo(path)
        got = []
        reader = in_thread(lambda: got.append(path.read_bytes()))
        output = io.opened(str(path), atomic=True)
        output.write(b"a")
        output.done()
        reader.join()
        assert got == [b"a"]

    def test_a_file_that_need_not_be_whole_is_written_in_place(self, tmp_path):
        path = tmp_path / "events"
        path.write_bytes(b"old and long")
        output = io.opened(str(path), atomic=False)
        output.write(b"new")
        output.failed()
        assert path.read_bytes() == b"new"

    def test_no_child_gets_our_files(self, tmp_path):
        output = io.opened(str(tmp_path / "out"), atomic=True)
        assert not os.get_inheritable(output.fd)
        output.failed()


class TestReadStdin:
    @pytest.fixture
    def pipe(self, monkeypatch):
        """The writing end of a pipe that stands for standard input."""
        with small_pipe() as (reading, writing):
            monkeypatch.setattr(io, "STDIN", reading.fileno())
            yield writing

    @pytest.fixture
    def impatient(self, monkeypatch):
        monkeypatch.setattr(io, "SILENCE", 0.02)

    @pytest.mark.parametrize("timeout", [None, 10])
    @pytest.mark.parametrize("blocking", [True, False])
    def test_it_reads_to_the_end(self, pipe, timeout, blocking):
        os.set_blocking(io.STDIN, blocking)
        writer = in_thread(lambda: (pipe.write(LONG[:3]), io.Descriptor(pipe.fileno(), "").write(LONG), pipe.close()))
        assert io.read_stdin(timeout=timeout) == LONG[:3] + LONG
        writer.join()

    def test_an_empty_input_is_not_silence(self, pipe):
        pipe.close()
        assert io.read_stdin(timeout=0.001) == b""

    def test_silence_is_mentioned_once_and_then_an_error(self, pipe, impatient):
        mentioned = []
        with pytest.raises(UsageError, match=r"^nothing came on standard input for 0.1 s: use -I to ignore it$"):
            io.read_stdin(timeout=0.1, silent=lambda: mentioned.append(1))
        assert mentioned == [1]

    def test_a_shorter_patience_is_not_worth_the_mention(self, pipe):
        mentioned = []
        with pytest.raises(UsageError):
            io.read_stdin(timeout=0.01, silent=lambda: mentioned.append(1))
        assert mentioned == []

    @pytest.mark.parametrize("timeout", [0, 10])
    def test_what_comes_after_the_mention_is_read(self, pipe, impatient, timeout):
        assert io.read_stdin(timeout=timeout, silent=lambda: (pipe.write(b"late"), pipe.close())) == b"late"

    def test_only_the_first_byte_has_a_limit(self, pipe, impatient):
        pipe.write(b"a")
        later = threading.Timer(0.1, lambda: (pipe.write(b"b"), pipe.close()))
        later.start()
        assert io.read_stdin(timeout=0.05) == b"ab"
        later.join()

    def test_what_cannot_be_read_is_an_error(self, monkeypatch, tmp_path):
        folder = os.open(tmp_path, os.O_RDONLY)
        monkeypatch.setattr(io, "STDIN", folder)
        with pytest.raises(UsageError, match=r"^cannot read standard input: is a directory$"):
            io.read_stdin()
        os.close(folder)


class TestDiagnostics:
    def test_a_note_is_a_line_and_an_error_is_another(self, capfd):
        diagnostics = io.Diagnostics()
        diagnostics.note("one")
        diagnostics.error("two")
        assert capfd.readouterr() == ("", "streamcli: one\nstreamcli: error: two\n")

    def test_quiet_leaves_only_errors(self, capfd):
        diagnostics = io.Diagnostics(quiet=True)
        diagnostics.note("one")
        diagnostics.error("two")
        assert capfd.readouterr().err == "streamcli: error: two\n"

    def test_nothing_in_a_line_can_end_it_or_be_obeyed(self, capfd):
        io.Diagnostics().error("a\nb\x1b[31m\udcff")
        assert capfd.readouterr().err == "streamcli: error: a b^[[31m\ufffd\n"

    def test_a_secret_is_never_shown(self, capfd):
        diagnostics = io.Diagnostics()
        diagnostics.secrets.add("sk-1")
        diagnostics.error("invalid key sk-1, sk-1")
        assert capfd.readouterr().err == "streamcli: error: invalid key ***, ***\n"

    def test_a_fault_as_json_is_one_line_with_what_a_script_needs(self, capfd):
        error = status_error(400, {"error": {"type": "invalid_request_error", "message": "a\nb \x9b"}}, request_id="r")
        io.Diagnostics(as_json=True).fault(error)
        line = capfd.readouterr().err
        assert line.count("\n") == 1
        assert json.loads(line) == {
            "type": "invalid_request_error", "status": 400, "message": "a\nb \x9b", "request_id": "r",
            "retryable": False, "retry_after": None, "details": None, "stop_details": None, "exit_code": 3,
        }  # fmt: skip

    def test_a_fault_as_json_may_name_a_file_whose_name_is_not_utf_8(self, capfd):
        io.Diagnostics(as_json=True).fault(UsageError("cannot read caf\udce9"))
        assert json.loads(capfd.readouterr().err)["message"] == "cannot read caf\ufffd"

    def test_nobody_to_hear_it_changes_nothing(self, monkeypatch):
        monkeypatch.setattr(io, "STDERR", 999_999)
        io.Diagnostics().error("lost")
