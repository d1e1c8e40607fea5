"""The public types, as mypy sees them, and that they ship.

It is slow the first time, for mypy reads the types of all that the package stands on.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def mypy(program):
    command = [sys.executable, "-m", "mypy", "--config-file=", "--cache-dir", ".mypy_cache/users", "--strict", program]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout


def test_a_user_s_program_passes_the_strictest_check():
    assert mypy("tests/typing_user.py") == "Success: no issues found in 1 source file\n"


def test_a_user_s_mistakes_are_found(tmp_path):
    program = tmp_path / "mistaken.py"
    program.write_text(
        "from streamcli import Client, Message\n"
        "def f(message: Message) -> int:\n"
        "    Client(api_kee='k')\n"
        "    Client().messages.strean()\n"
        "    return message.model\n"
    )
    assert re.findall(r"error: .*\[(.+)\]", mypy(str(program))) == ["call-arg", "attr-defined", "return-value"]


def test_the_package_says_that_it_is_typed():
    assert (ROOT / "streamcli" / "py.typed").is_file()
    assert 'streamcli = ["py.typed"]' in (ROOT / "pyproject.toml").read_text()
