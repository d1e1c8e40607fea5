"""streamcli.cli.config: what a file makes of the options. Precedence and messages are in cli/config.txt."""

import os
import tempfile
from pathlib import Path

import pytest
from faults_command import as_nobody_known, streamcli
from server import ok, text_events

from streamcli.cli import config
from streamcli.cli.args import BARE, OPTIONS, parse
from streamcli.cli.settings import Place
from streamcli.errors import UsageError


@pytest.fixture
def file(tmp_path):
    return tmp_path / "config.toml"


def settings(file, profile=None):
    found, _ = config.configured(str(file), profile, OPTIONS, BARE)
    return found


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_every_option_can_be_set_but_those_that_choose_the_configuration(option, file):
    key = next(opt[2:] for opt in option.opts if opt.startswith("--"))
    value = {"number": "7", "choice": f'"{getattr(option.type, "choices", [""])[0]}"', "thinking": '"off"'}
    given = "true" if option.is_flag else value.get(option.type.name, '"text"')
    file.write_text(f"{key} = {given}\n")
    if option.name in {"config", "profile"}:
        with pytest.raises(UsageError, match=r"is not (a key of the configuration|a table: profiles go into)"):
            settings(file)
    else:
        assert [setting.name for setting in settings(file)] == [option.name]


def test_the_usual_place_follows_xdg(monkeypatch):
    assert config.usual_path({"XDG_CONFIG_HOME": "/x"}) == "/x/streamcli/config.toml"
    monkeypatch.setenv("HOME", "/home/me")
    for relative in ("", "rel"):
        assert config.usual_path({"XDG_CONFIG_HOME": relative}) == "/home/me/.config/streamcli/config.toml"


def test_a_missing_file_in_the_usual_place_says_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert config.configured(None, None, OPTIONS, BARE) == ([], {})


def test_a_profile_lies_over_the_file(file):
    file.write_text('model = "a"\nmax-tokens = 1\n[profile.p]\nmodel = "b"\n')
    found = parse(["--config", str(file), "--profile", "p"]).settings
    assert found["model"][1:] == ("b", Place.PROFILE, f"profile p, {file}")
    assert found["max_tokens"][1:] == (1, Place.FILE, str(file))


def test_local_may_be_true_or_a_file(file, monkeypatch):
    for text, value in (("true", ""), ('"a.gguf"', "a.gguf")):
        file.write_text(f"[profile.local]\nlocal = {text}\n")
        assert parse(["--config", str(file), "--profile", "local"]).local == value


def test_a_text_stands_for_a_list_of_one(file):
    file.write_text('stop = "end"\n')
    assert parse(["--config", str(file)]).stop == ("end",)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("model = ", "not TOML"),
        ('model = ["a"]', "needs a string or a number"),
        ("model = true", "needs a string or a number"),
        ("usage = 1", "needs true or false"),
        ("stop = 3", "needs a list of strings"),
        ("retries = -1", "out of range"),
        ("profile = 3", "is not a table: profiles go into"),
        ("profile.p = 3", "is not a table"),
        ("[model]", "needs a string or a number"),
        ('auth = "none"', "is not one of"),
    ],
)
def test_what_fits_no_option_is_rejected_with_its_place(text, reason, file):
    file.write_text(f"{text}\n")
    with pytest.raises(UsageError, match=reason) as raised:
        settings(file, "p" if "profile" in text else None)
    assert str(file) in raised.value.message


def test_a_file_that_is_not_utf_8_is_rejected(file):
    file.write_bytes(b'model = "\xff"\n')
    with pytest.raises(UsageError, match=r"is not UTF-8: byte 10 is 0xff$"):
        settings(file)


def test_a_byte_order_mark_and_windows_line_ends_are_read(file):
    file.write_bytes(b'\xef\xbb\xbfmodel = "a"\r\nmax-tokens = 1\r\n')
    assert {setting.name: setting.value for setting in settings(file)} == {"model": "a", "max_tokens": 1}


@pytest.mark.parametrize(
    ("text", "nearest"),
    [("modell = 1", "model"), ("max_tokens = 1", "max-tokens"), ("api-keyfile = 1", "api-key-file"), ("zzz = 1", None)],
)
def test_an_unknown_key_names_the_nearest(text, nearest, file):
    file.write_text(text)
    with pytest.raises(UsageError) as raised:
        settings(file)
    end = f"; did you mean {nearest}?" if nearest else "of the configuration"
    assert raised.value.message.endswith(end)


def test_an_unknown_profile_names_the_nearest(file):
    file.write_text("[profile.box]\n[profile.local]\n")
    with pytest.raises(UsageError, match=r"has no table \[profile.locale\]; did you mean local\?$"):
        settings(file, "locale")


# A configuration that nobody named


SPY = 'api-key-cmd = "echo run > spied; echo sk-0123456789"\n'


@pytest.fixture
def public():
    """A folder that everybody may enter and write in."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        yield Path(folder)


def planted(folder, name):
    """A configuration below `folder` whose command leaves a trace where it is run."""
    place = folder / name / "streamcli"
    place.mkdir(parents=True)
    (place / "config.toml").write_text(SPY)
    return place / "config.toml"


@pytest.mark.parametrize(
    ("name", "environment"),
    [
        ("~/.config", {"HOME": None}),
        ("home/.config", {"HOME": "home"}),
        (".config", {"HOME": "."}),
        ("~/.config", {"HOME": None, "XDG_CONFIG_HOME": "."}),
        ("x", {"HOME": None, "XDG_CONFIG_HOME": "x"}),
    ],
)
def test_none_is_read_from_the_working_directory(name, environment, server, public):
    server.responses = [ok(*text_events("Hello."))]
    planted(public, name)
    prefix = as_nobody_known()
    ended = streamcli("--base-url", server.url, "hi", prefix=prefix, env=environment, cwd=public)
    assert ended == (0, b"Hello.", "")
    assert not (public / "spied").exists()
    assert "x-api-key" not in server.request().headers


def test_a_profile_where_no_configuration_can_be_is_a_usage_error(public):
    ended = streamcli("--profile", "p", "hi", prefix=as_nobody_known(), env={"HOME": None}, cwd=public)
    said = "--profile p: there is no home directory to look for the configuration in: name a file with --config"
    assert (ended.status, ended.error) == (2, said)


def test_a_home_that_may_not_be_entered_holds_none_and_a_file_that_may_not_be_read_is_an_error(server, public):
    server.responses = [ok(*text_events("Hello."))]
    prefix = as_nobody_known()
    file = planted(public, "home/.config")
    env = {"HOME": str(public / "home")}
    file.chmod(0)
    refused = streamcli("hi", prefix=prefix, env=env)
    (public / "home").chmod(0)
    named = streamcli("--config", str(file), "hi", prefix=prefix, env=env)
    for ended in (refused, named):
        assert (ended.status, ended.error) == (2, f"cannot read the configuration {file}: permission denied")
    assert streamcli("--base-url", server.url, "hi", prefix=prefix, env=env) == (0, b"Hello.", "")
