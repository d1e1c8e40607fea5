"""streamcli.cli.files: what is read is never written, and nothing is written by two."""

import itertools
import os
import subprocess

import pytest
from faults_command import shell, streamcli
from server import Server, head, ok, opening, text_events

from streamcli.cli import files
from streamcli.cli.args import EXCLUSIVE, parse
from streamcli.errors import UsageError

READS = ("file", "attach", "body", "system_file", "schema", "tools", "tool", "api_key_file", "ca_file", "config")
READS += ("replay", "batch", "local", "conversation")
# What an option writes beside the file it names.
WRITES = {
    "output": ("", ".partial"),
    "conversation": ("", ".torn"),
    "usage_to": ("",),
    "events_to": ("",),
    "record": ("",),
}
PAIRS = [
    (read, write, suffix)
    for read, (write, suffixes) in itertools.product(READS, WRITES.items())
    for suffix in suffixes
    if read != write and not {(read, write), (write, read)} & set(EXCLUSIVE)
    if not (read == "batch" and suffix)  # written line by line
]


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def option(name, path):
    return f"--{name.replace('_', '-')}={path}"


def checked(*argv):
    files.check(parse([*argv]))


def refused(*argv):
    with pytest.raises(UsageError) as raised:
        checked(*argv)
    return raised.value.message


@pytest.mark.parametrize(("read", "write", "suffix"), PAIRS)
def test_what_is_read_is_never_written(read, write, suffix, folder):
    (folder / f"x{suffix}").touch()
    said = refused(option(read, folder / f"x{suffix}"), option(write, "x"))
    assert f"--{read.replace('_', '-')}" in said
    assert f"--{write.replace('_', '-')}" in said
    assert " both name " in said
    assert said.endswith(": rename it first") == bool(suffix)


@pytest.mark.parametrize("one", WRITES)
@pytest.mark.parametrize("other", WRITES)
def test_nothing_is_written_by_two(one, other):
    if one != other:
        assert "both name ./x" in refused(option(one, "./x"), option(other, "./x"))


@pytest.mark.parametrize("kind", ["a link", "another name", "a link to nothing"])
def test_a_file_is_one_under_all_its_names(kind, folder):
    if kind != "a link to nothing":
        (folder / "x").touch()
    os.link("x", "y") if kind == "another name" else os.symlink("x", "y")
    assert refused("-o", "x", "--events-to", "y") == "--output and --events-to both name x: use two files"


def test_what_a_failed_run_kept_beside_the_target_of_a_link_is_not_its_next_input_and_output(folder):
    (folder / "real").mkdir()
    (folder / "link").symlink_to("real/x")
    (folder / "real" / "x.partial").touch()
    assert "--output and --file both name" in refused("-f", "real/x.partial", "-o", "link")


def test_the_state_of_a_batch_is_not_written_over(folder):
    (folder / "x.batches").touch()
    said = refused("--batch", "in", "--offload", "-o", "x", "--usage-to", "x.batches")
    assert said == "--usage-to and --output both name x.batches, where --offload keeps its state: rename it first"


def test_the_configuration_nobody_names_is_read_too(folder):
    (folder / ".config" / "streamcli").mkdir(parents=True)
    path = folder / ".config" / "streamcli" / "config.toml"
    path.touch()
    assert refused("-o", str(path)) == f"--output and the configuration both name {path}: use two files"


def test_standard_input_may_be_a_file_too(folder):
    (folder / "x").write_text("precious")
    for words, status in ((["-o", "x"], 2), (["--events-to", "x"], 2), (["-I", "-o", "x", "--dry-run"], 0)):
        with open("x") as file:
            assert streamcli(*words, "--base-url", "http://127.0.0.1:9", "hi", stdin=file).status == status
    assert (folder / "x").read_text() == "precious"


@pytest.mark.parametrize(
    "argv",
    [
        ["-f", "x", "-f", "x", "-a", "x", "--system-file", "x"],
        ["-f", "-", "-o", "-", "-a", "https://h/x.png"],
        ["--events-to", "/dev/null", "--usage-to", "/dev/null", "-o", "/dev/null"],
        ["-T", "x", "-o", "x"],
        ["--schema", "{}", "-o", "{}x"],
        ["-f", "missing/x", "-o", "x\0"],
    ],
)
def test_what_is_only_read_and_what_is_no_file_may_be_named_twice(argv, folder):
    (folder / "x").touch()
    checked("-I", *argv)


def test_to_go_on_from_what_a_failed_run_kept_it_gets_another_name(folder):
    with Server(head() + opening("Hel"), ok(*text_events("lo"))) as server:
        run = ["--base-url", server.url, "--retries", "0", "-I", "-o", "answer"]
        assert streamcli(*run, "Write it.").status == 8
        ended = streamcli(*run, "-f", "answer.partial", "Go on.")
        where = "where a failed run keeps its output: rename it first"
        assert (ended.status, ended.error) == (2, f"--output and --file both name answer.partial, {where}")
        assert (folder / "answer.partial").read_text() == "Hel"
        (folder / "answer.partial").rename("first")
        assert streamcli(*run, "-f", "first", "Go on.").status == 0
    assert (folder / "answer").read_text() == "lo"


@pytest.mark.parametrize(
    ("argv", "status", "said"),
    [
        (["-o", "x", "hi"], 10, "cannot write to x"),
        (["--usage-to", "x", "hi"], 10, "cannot write to x"),
        (["-c", "x", "-f", "y", "hi"], 2, "cannot read the prompt file y"),
        (["-c", "x", "hi"], 10, "cannot write to x"),
        (["--record", "x", "--events-to", "y", "hi"], 10, "cannot write to y"),
        (["--batch", "b", "-o", "x"], 2, "cannot read b"),
        (["--batch", "/dev/stdin", "--lines", "-o", "x"], 10, "cannot write to x"),
        (["--batch", "/dev/stdin", "--lines", "--offload", "-o", "x"], 10, "cannot write to x"),
        (["--replay", "x"], 2, "cannot read the tape x"),
        (["-T", "./x", "hi"], 2, "there is no tool ./x"),
    ],
)
def test_in_a_directory_that_is_gone_a_file_is_not_there(argv, status, said, folder):
    prefix = shell("mkdir gone; cd gone; rmdir ../gone")
    stdin = b"hi\n" if "/dev/stdin" in argv else subprocess.DEVNULL
    ended = streamcli("--base-url", "http://127.0.0.1:9", *argv, prefix=prefix, stdin=stdin)
    assert ended.status == status
    assert ended.error.startswith(said)
