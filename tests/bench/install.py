"""Puts the peers and streamcli itself into environments of their own under one folder, through pip and npm.

The peers are installed once, streamcli at every start, from the tree this file lies in and as its users install it: an
editable installation, or an environment with more in it, starts more slowly. A peer that cannot be installed is
reported and left out; the rows go on without it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

# Each in an environment of its own: httpx, for one, imports more where click is installed.
PIP_PEERS = {
    "script": ("httpx", "httpx-sse", "orjson"),
    "anthropic": ("anthropic",),
    "llm": ("llm", "llm-anthropic"),
}
NPM_PEERS = {
    "node-sdk": ("@anthropic-ai/sdk",),
    "eventsource-parser": ("eventsource-parser",),
}
PROGRAMS = ("node", "curl", "sed", "jq")

TREE = Path(__file__).absolute().parents[2]
# What its installation needs, copied so that no build leaves traces in the tree.
SOURCES = ("streamcli", "man", "completions", "pyproject.toml", "README.md", "LICENSE")

_VERSIONS = "from importlib.metadata import version\nfor name in {!r}: print(name, version(name), end='; ')"


def install(cache: Path) -> dict[str, Path]:
    """The peers that are there: an environment's folder, the folder above node_modules, or a program's path."""
    wanted = [(name, cache / name, _pip, packages) for name, packages in PIP_PEERS.items()]
    wanted += [(name, cache / name, _npm, packages) for name, packages in NPM_PEERS.items()]
    found = {name: folder for name, folder, tool, packages in wanted if _installed(folder, tool, packages)}
    found |= {name: Path(path) for name in PROGRAMS if (path := shutil.which(name))}
    for name in (*PIP_PEERS, *NPM_PEERS, *PROGRAMS):
        if name not in found:
            sys.stderr.write(f"bench: the table goes without {name}\n")
    return found


def streamcli(cache: Path) -> Path:
    """The Python of an environment in which the streamcli of this tree is installed as it is now."""
    folder, source = cache / "streamcli", cache / "source"
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir(parents=True)
    for name in SOURCES:
        copy = shutil.copytree if (TREE / name).is_dir() else shutil.copy
        if (TREE / name).exists():
            copy(TREE / name, source / name)
    if not (folder / "bin/pip").exists():
        venv.create(folder, with_pip=True, clear=True)
    _output([folder / "bin/python", "-m", "pip", "install", "--disable-pip-version-check", source])
    return folder / "bin/python"


def _installed(folder: Path, tool, packages: tuple[str, ...]) -> bool:
    done = folder / "installed"
    if done.exists():
        return True
    sys.stderr.write(f"bench: installing {' '.join(packages)}\n")
    try:
        tool(folder, packages)
    except (OSError, subprocess.SubprocessError) as fault:
        sys.stderr.write(f"bench: {fault}\n{getattr(fault, 'stderr', None) or ''}")
        return False
    done.touch()
    return True


def _pip(folder: Path, packages: tuple[str, ...]) -> None:
    venv.create(folder, with_pip=True, clear=True)
    _output([folder / "bin/python", "-m", "pip", "install", "--disable-pip-version-check", *packages])


def _npm(folder: Path, packages: tuple[str, ...]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _output(["npm", "install", "--no-audit", "--no-fund", "--prefix", folder, *packages])


def versions(found: dict[str, Path]) -> list[str]:
    """Name and version of every peer, for the record."""
    commands = [
        [found[name] / "bin/python", "-c", _VERSIONS.format(packages)]
        for name, packages in PIP_PEERS.items()
        if name in found
    ]
    commands += [
        ["npm", "list", "--prefix", found[name], "--parseable", "--long", "--depth=0", package]
        for name, (package,) in NPM_PEERS.items()
        if name in found
    ]
    programs = {name: _output([found[name], "--version"]) for name in PROGRAMS if name in found}
    return [
        *(_version(_output(command)) for command in commands),
        *(f"{name} {re.search(r'[0-9][0-9.]*', said)[0]}" for name, said in programs.items()),
    ]


def _version(text: str) -> str:
    return text.splitlines()[0].rpartition(":")[2].strip("; ")[:60]


def _output(command) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=600).stdout
