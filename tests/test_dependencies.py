"""What pyproject.toml says of its dependencies is true: all is the same with the lowest version of each and the newest.

Slow where a version gets an environment of its own, with an index to install it from.
"""

import re
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DEPENDENCIES = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
LOWEST = dict(re.match(r"(\w+)>=([\d.]+)", line).groups() for line in DEPENDENCIES)
# The tests of what each is used for.
TESTS = {
    # How click reads words and variables, and what it prints.
    "click": ("args", "config", "cli", "command", "man"),
    "httpcore": ("transport", "connection", "proxy", "http_parts"),
    "httpx": ("client", "clients", "transport", "pool"),
    "orjson": ("jsontext", "message", "records", "results", "history"),
}


def environment_with(wanted, folder):
    """The Python of an environment that has this version of a package, and all else from the one of the tests."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}))
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(packages), wanted]
    installed = subprocess.run(install, capture_output=True, text=True, check=False)
    if installed.returncode:
        pytest.skip(f"{wanted} cannot be installed: {installed.stderr.strip()[-200:]}")
    (packages / "others.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    return folder / "bin" / "python"


@pytest.fixture
def folder():
    """One that everybody may read, as pytest's own is not: some tests start the command as another user."""
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o755)
        yield Path(made)


def test_no_group_of_a_pattern_is_possessive():
    """Pythons before 3.11.5, as Debian 12 has one, match such a group wrongly."""
    modules = (ROOT / "streamcli").rglob("*.py")
    assert [path for path in modules if re.search(r"\)(?:[?*+]|\{\d*,?\d*\})\+", path.read_text())] == []


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("version", ["lowest", "newest"])
@pytest.mark.parametrize("name", LOWEST)
def test_all_is_the_same_with_each_version_of(name, version, folder):
    python = environment_with(f"{name}=={LOWEST[name]}" if version == "lowest" else name, folder)
    asked = [python, "-c", f"from importlib.metadata import version; print(version({name!r}))"]
    found = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    assert found.startswith(LOWEST[name]) or version == "newest"
    tests = [str(ROOT / "tests" / f"test_{part}.py") for part in TESTS[name]]
    run = [python, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", *tests]
    ended = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout[-3000:]
