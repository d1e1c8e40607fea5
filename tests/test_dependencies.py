"""What pyproject.toml says of click is true: the command is the same with the lowest version and with the newest.

Slow, because each version gets an environment of its own, with an index to install it from.
"""

import re
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DEPENDENCIES = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
LOWEST = next(re.search(r"^click>=([\d.]+)", line)[1] for line in DEPENDENCIES if line.startswith("click"))
# What depends on how click reads words and variables, and on what it prints.
TESTS = ("test_args.py", "test_config.py", "test_cli.py", "test_command.py", "test_man.py")


def environment_with(wanted, folder):
    """The Python of an environment that has this version of click, and all else from the one of the tests."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}))
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(packages), wanted]
    installed = subprocess.run(install, capture_output=True, text=True, check=False)
    if installed.returncode:
        pytest.skip(f"{wanted} cannot be installed: {installed.stderr.strip()[-200:]}")
    (packages / "others.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    return folder / "bin" / "python"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("wanted", [f"click=={LOWEST}", "click"], ids=["lowest", "newest"])
def test_the_command_is_the_same_with_each_version_of_click(wanted, tmp_path):
    python = environment_with(wanted, tmp_path)
    version = [python, "-c", "from importlib.metadata import version; print(version('click'))"]
    found = subprocess.run(version, capture_output=True, text=True, check=True).stdout.strip()
    assert found == LOWEST or wanted == "click"
    tests = [str(ROOT / "tests" / name) for name in TESTS]
    run = [python, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", *tests]
    ended = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout[-3000:]
