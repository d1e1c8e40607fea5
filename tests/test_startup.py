"""What an import costs: nothing but the standard library until a name is used, and no asyncio where none is needed."""

import json
import os
import subprocess
import sys

import pytest
from server import ok, text_events


def loaded(code):
    """The modules that `code` loads, beyond those of a bare interpreter."""
    program = f"import sys\nbefore = set(sys.modules)\n{code}\nimport json\nprint(json.dumps(sorted(names)))"
    done = subprocess.run([sys.executable, "-Werror", "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


ADDED = "names = set(sys.modules) - before"


def test_importing_the_package_loads_nothing_but_the_standard_library_and_little_of_it():
    names = {name.partition(".")[0] for name in loaded(f"import streamcli\n{ADDED}")}
    assert names - {"streamcli"} <= sys.stdlib_module_names
    assert not names & {"asyncio", "ssl", "json", "socket", "urllib", "email", "logging", "subprocess"}


def test_the_exceptions_come_without_the_client():
    names = loaded(f"from streamcli import APIError, OverloadedError\n{ADDED}")
    assert {name for name in names if name.startswith("streamcli")} == {"streamcli", "streamcli.errors"}
    assert not names & {"httpx", "orjson", "asyncio", "ssl"}


def test_an_unknown_name_is_an_attribute_error():
    import streamcli  # noqa: PLC0415

    with pytest.raises(AttributeError, match="has no attribute 'Clinet'"):
        _ = streamcli.Clinet
    with pytest.raises(ImportError):
        from streamcli import Clinet  # noqa: F401, PLC0415


@pytest.mark.parametrize("name", __import__("streamcli").__all__)
def test_every_exported_name_is_there(name):
    import streamcli  # noqa: PLC0415

    assert getattr(streamcli, name).__name__ == name


def test_a_whole_synchronous_stream_loads_no_asyncio(server):
    server.responses = [ok(*text_events("a", "b"))]
    ask = "model='m', max_tokens=1, messages=[]"
    names = loaded(
        f"from streamcli import Client\n"
        f"with Client(base_url={server.url!r}) as client, client.messages.stream({ask}) as stream:\n"
        f"    assert stream.get_final_text() == 'ab'\n"
        f"{ADDED}"
    )
    assert "streamcli.network.connection" in names
    assert not {name for name in names if name.partition(".")[0] in {"asyncio", "concurrent", "uvloop"}}


RARE = {"batch.pool", "cli.batch", "cli.confirm", "cli.show", "network.local", "protocol.deviations"}
RARE |= {"turns.conversation", "turns.journal", "turns.processes", "turns.tools"}
# What the standard library adds for its own reasons: `python -m`, and the names of hosts.
RUN = {"runpy", "encodings.idna", "stringprep"}


def imports(*argv):
    """The modules that a Python imports that is run so."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *argv],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"ANTHROPIC_API_KEY": "k"},
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip() for line in lines}


def test_a_whole_run_of_the_command_loads_its_libraries_and_next_to_nothing_else(server):
    server.responses = [ok(*text_events("a"))]
    libraries = imports("-c", "import click, h11, httpx, orjson")
    found = imports("-m", "streamcli", "--base-url", server.url, "hi") - libraries
    ours = {name for name in found if name.partition(".")[0] == "streamcli"}
    assert found - ours - RUN <= {"fcntl", "gc", "importlib._abc", "importlib.util", "select", "signal"}
    assert "streamcli.cli.answer" in ours
    assert not ours & {f"streamcli.{name}" for name in RARE}


def test_a_connection_begins_before_the_libraries_are_imported():
    program = (
        "import os, sys\n"
        "from streamcli.__main__ import main\n"
        "from streamcli.network import head_start\n"
        "head_start.begin = lambda *_: os._exit(print(*sys.modules, flush=True) or 0)\n"
        "sys.argv[1:] = ['--base-url', 'https://127.0.0.1:1', 'hi']\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "socket" in done.stdout.split()
    assert not {"httpx", "httpcore", "orjson", "ssl"} & set(done.stdout.split())


def test_garbage_is_looked_for_only_when_everything_is_imported(server):
    server.responses = [ok(*text_events("a"))]
    program = (
        "import gc, json, os, sys\n"
        "from streamcli.__main__ import main\n"
        "looked = []\n"
        "gc.callbacks.append(lambda *_: looked.append('streamcli.cli.clients' in sys.modules))\n"
        "os._exit = lambda status: print(json.dumps([status, all(looked), gc.isenabled()]), file=sys.stderr)\n"
        f"sys.argv[1:] = ['--base-url', {server.url!r}, 'hi']\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stderr) == [0, True, True]
