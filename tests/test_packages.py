"""streamcli.network.packages: the command that is named installs where this Python looks, and is not refused."""

import importlib.util
import os
import site
import sys
import sysconfig

import pytest

from streamcli.network.packages import installing

ITSELF = f"{sys.executable} -m pip install"
WITH_UV = f"uv pip install --python {sys.executable}"
TARGET = f"--target {site.getusersitepackages()}"


@pytest.mark.parametrize(
    ("environment", "managed", "pip", "writable", "command"),
    [
        (True, False, True, True, ITSELF),
        (True, True, True, True, ITSELF),
        (True, True, True, False, f"sudo {ITSELF}"),
        (True, False, False, True, WITH_UV),
        (False, False, True, False, ITSELF),
        (False, True, True, False, f"{ITSELF} {TARGET}"),
        (False, True, False, True, f"{WITH_UV} {TARGET}"),
    ],
)
def test_the_command_is_the_one_of_its_python(monkeypatch, tmp_path, environment, managed, pip, writable, command):
    if managed:
        (tmp_path / "EXTERNALLY-MANAGED").touch()
    monkeypatch.setattr(sys, "prefix", "/an/environment" if environment else sys.base_prefix)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: pip or None)
    monkeypatch.setattr(os, "access", lambda path, mode: writable)
    assert installing(["one", "two"]) == f"{command} --no-deps one two"
