"""streamcli.network.local_server and who starts it: a model that loads holds nobody up, and nothing outlives anybody.

llama.cpp is replaced by a module that says when it loads, and then never returns to Python.
"""

import os
import signal
import sys
from pathlib import Path

import pytest
from faults_command import Running, streamcli, until

LOADS_FOR_EVER = """
import ctypes, os
from types import SimpleNamespace

def CommonParams():
    return SimpleNamespace(model=SimpleNamespace(), cpuparams=SimpleNamespace(), cpuparams_batch=SimpleNamespace())

def Server(parameters):
    print("the stdout of llama.cpp")
    with open({here!r} + "/begun", "w") as file:
        file.write(str(os.getpid()))
    os.rename({here!r} + "/begun", {here!r} + "/loading")
    while {forever}:
        ctypes.PyDLL(None).sleep(1000)  # the interpreter's lock is held
    {then}
"""


# What llama.cpp writes where it cannot load a model; what it says twice, or of giving up, is no reason.
LOG = b"""0.00.004.189 E gguf_init_from_reader: failed to read header
0.00.004.225 E llama_model_load: error loading model: unknown model architecture: 'x'
0.00.004.225 E llama_model_load: error loading model: unknown model architecture: 'x'
0.00.004.819 E cmn  common_init_: no such tensor
0.00.005.161 E srv          init: exiting due to model loading error
"""


class Model:
    """A model file, a llama.cpp that loads it, and the environment in which the command finds both."""

    def __init__(self, folder, then=""):
        self.folder = folder
        (folder / "model.gguf").write_bytes(b"GGUF")
        module = LOADS_FOR_EVER.format(here=str(folder), forever=not then, then=then)
        (folder / "xllamacpp.py").write_text(module)
        self.env = {"PYTHONPATH": str(folder), "STREAMCLI_LOCAL_MODEL": str(folder / "model.gguf")}

    def server(self):
        """The process that loads, once it does."""
        until((self.folder / "loading").exists)
        return int((self.folder / "loading").read_text())

    def was_started(self):
        return (self.folder / "loading").exists()


@pytest.fixture
def model(tmp_path):
    return Model(tmp_path)


def is_running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


ONE = ["--local", "-I", "hi"]


@pytest.fixture(params=["one answer", "a batch"])
def asked(request, tmp_path):
    (tmp_path / "lines").write_text('"hi"\n')
    return ONE if request.param == "one answer" else ["--local", "--batch", tmp_path / "lines"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_both_while_the_model_loads(model, asked, number):
    with Running(*asked, env=model.env) as running:
        server = model.server()
        running.signal(number)
        status, out, _ = running.end(within=5)
    assert (status, out) == (-number, b"")
    until(lambda: not is_running(server))


def test_the_server_dies_with_a_command_that_is_killed(model):
    with Running(*ONE, env=model.env) as running:
        server = model.server()
        running.signal(signal.SIGKILL)
        running.end()
        until(lambda: not is_running(server))


def test_the_server_has_none_of_the_command_s_streams_and_is_not_in_its_session(model):
    with Running(*ONE, env=model.env) as running:
        server = model.server()
        theirs = {os.readlink(f"/proc/{server}/fd/{number}") for number in os.listdir(f"/proc/{server}/fd")}
        ours = {os.readlink(f"/proc/{running.pid}/fd/{number}") for number in (1, 2)}
        assert not theirs & ours
        assert os.getsid(server) != os.getsid(running.pid)


@pytest.mark.parametrize("words", [ONE, ["--local", "--models"], [*ONE, "--count-tokens"]])
def test_an_output_that_cannot_be_opened_is_said_though_the_model_never_loads(model, words, tmp_path):
    ended = streamcli(*words, "-o", tmp_path / "missing" / "answer", env=model.env)
    assert (ended.status, ended.error.startswith("cannot write to ")) == (10, True)


def test_a_batch_that_is_rejected_is_said_though_the_model_never_loads(model, tmp_path):
    (tmp_path / "lines").write_text('"hi"\n')
    (tmp_path / "results").write_text("something\n")
    ended = streamcli("--local", "--batch", tmp_path / "lines", "-o", tmp_path / "results", env=model.env)
    assert ended.status == 2


@pytest.mark.parametrize("option", ["--dry-run", "--as-curl", "--show-config"])
def test_what_only_shows_a_request_loads_no_model(model, option):
    ended = streamcli(*ONE, option, env=model.env)
    assert (ended.status, ended.err, model.was_started()) == (0, "", False)


@pytest.mark.parametrize(
    ("then", "said"),
    [
        ("raise RuntimeError('no tensors')", "no tensors"),
        (
            f"os.write(2, {LOG}); raise RuntimeError('check the params')",
            "unknown model architecture: 'x'; no such tensor",
        ),
        (f"os.write(2, {LOG}); os._exit(3)", "unknown model architecture: 'x'; no such tensor"),
        # It writes its log in a thread of its own, and what is left of it when it ends.
        (
            f"import atexit; atexit.register(os.write, 2, {LOG}); raise RuntimeError('check the params')",
            "unknown model architecture: 'x'; no such tensor",
        ),
        (
            f"os.write(2, {LOG.splitlines()[0]} + b'\\n'); raise RuntimeError('check the params')",
            "failed to read header",
        ),
        ("os.write(1, b'one\\nGGML_ASSERT(n) failed\\n'); os._exit(3)", "GGML_ASSERT(n) failed"),
        ("os._exit(3)", "llama.cpp ended without saying why"),
        ("os.kill(os.getpid(), 11)", "llama.cpp ended without saying why"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_a_usage_error_and_an_old_answer_stays(tmp_path, then, said):
    model = Model(tmp_path, then)
    (tmp_path / "answer").write_text("old")
    ended = streamcli(*ONE, "-o", tmp_path / "answer", env=model.env)
    assert (ended.status, ended.out) == (2, b"")
    assert ended.error == f"the model {tmp_path}/model.gguf cannot be loaded: {said}"
    assert (tmp_path / "answer").read_text() == "old"


def test_a_module_in_the_working_directory_is_not_taken_for_llama_cpp(model, tmp_path):
    folder = tmp_path / "here"
    folder.mkdir()
    for name in ("streamcli", "xllamacpp", "json"):
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'taken')!r}, 'w')\n")
    command = [sys.executable, "-P", "-m", "streamcli"]
    with Running(*ONE, env=model.env, command=command, cwd=folder) as running:
        model.server()
        running.signal(signal.SIGINT)
        running.end()
    assert not (tmp_path / "taken").exists()
