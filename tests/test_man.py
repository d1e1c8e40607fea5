"""man/streamcli.1 says what the command has: every option and no other, every status, and examples that run."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from server import ok, text_events

from streamcli import errors
from streamcli.cli.args import command

PAGE = (Path(__file__).parent.parent / "man" / "streamcli.1").read_text()


def options_of_the_page():
    """The options that have an entry: `.It Fl f Ar path , Fl -file Ar path` has -f and --file."""
    entries = re.findall(r"^\.It (Fl .*)$", PAGE, re.MULTILINE)
    return {f"-{name}" for entry in entries for name in re.findall(r"Fl ([\w-]+)", entry)}


def options_of_the_command():
    names = [name for option in command().params for name in (*option.opts, *option.secondary_opts)]
    return {name for name in names if name.startswith("-")} | {"-h", "--help"}


def statuses_of_the_page():
    section = PAGE.partition(".Sh EXIT STATUS")[2].partition(".Sh")[0]
    return {int(status) for status in re.findall(r"^\.It (\d+)$", section, re.MULTILINE)}


def all_subclasses(cls):
    return {cls}.union(*map(all_subclasses, cls.__subclasses__()))


def test_every_option_is_in_the_page_and_no_other():
    assert options_of_the_page() == options_of_the_command()


def test_every_status_of_an_error_is_in_the_page_and_no_other():
    said_by_errors = {cls.exit_code for cls in all_subclasses(errors.StreamcliError)}
    assert statuses_of_the_page() == said_by_errors | {0, 9}


def test_every_variable_that_is_named_after_an_option_has_one():
    named = set(re.findall(r"STREAMCLI_([A-Z_]+)", PAGE)) - {"LOCAL_MODEL"}
    assert named <= {option.name.upper() for option in command().params}


def examples_of_the_page():
    """The shell programs of EXAMPLES, a line or a block each; the one that needs a model is tests/test_local.py's."""
    section = PAGE.partition(".Sh EXAMPLES")[2].partition(".Sh")[0]
    lines = re.findall(r"^\.Dl \$ (.*)$", section, re.MULTILINE)
    blocks = re.findall(r"^\.Bd -literal.*?\n(.*?)^\.Ed", section, re.MULTILINE | re.DOTALL)
    programs = lines + [re.sub(r"^[$>] ", "", block, flags=re.MULTILINE) for block in blocks]
    return [program for program in programs if "--local" not in program]


@pytest.fixture
def tape(server, tmp_path):
    server.responses = [ok(*text_events("Paris."))]
    path = tmp_path / "answer.tape"
    ask = [sys.executable, "-m", "streamcli", "-I", "--base-url", server.url, "--record", str(path), "hi"]
    subprocess.run(ask, check=True, capture_output=True)
    return path


@pytest.mark.parametrize("program", examples_of_the_page())
def test_an_example_runs_as_it_stands_on_a_tape(program, tape, tmp_path):
    for name in ("change.diff", "question.txt"):
        (tmp_path / name).write_text("text\n")
    (tmp_path / "streamcli").write_text(f'#!/bin/sh\nexec {sys.executable} -m streamcli "$@"\n')
    (tmp_path / "streamcli").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    if "--replay" not in program:
        environment["STREAMCLI_REPLAY"] = str(tape)
    run = subprocess.run(
        ["sh", "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    files = "".join(path.read_text() for path in tmp_path.glob("*.*") if path.suffix in {".md", ".txt"})
    assert (run.returncode, run.stderr) == (0, "")
    assert "Paris." in run.stdout + files


@pytest.mark.skipif(not shutil.which("mandoc"), reason="mandoc is not installed")
def test_mandoc_has_nothing_to_say():
    lint = subprocess.run(
        ["mandoc", "-Tlint", "-W", "warning"], input=PAGE, capture_output=True, text=True, check=False
    )
    assert lint.stdout + lint.stderr == ""
