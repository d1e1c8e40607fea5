"""man/streamcli.1 says what the command has: every option and no other, every status, and examples that run."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from streamcli import errors
from streamcli.cli.args import command

PAGE = (Path(__file__).parent.parent / "man" / "streamcli.1").read_text()


def options_of_the_page():
    """The options that have an entry: `.It Fl f Ar path , Fl -file Ar path` has -f and --file."""
    entries = re.findall(r"^\.It (Fl .*)$", PAGE, re.MULTILINE)
    return {f"-{name}" for entry in entries for name in re.findall(r"Fl ([\w-]+)", entry)}


def options_of_the_command():
    return {name for option in command().params for name in option.opts if name.startswith("-")} | {"-h", "--help"}


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


@pytest.mark.skipif(not shutil.which("mandoc"), reason="mandoc is not installed")
def test_mandoc_has_nothing_to_say():
    lint = subprocess.run(
        ["mandoc", "-Tlint", "-W", "warning"], input=PAGE, capture_output=True, text=True, check=False
    )
    assert lint.stdout + lint.stderr == ""
