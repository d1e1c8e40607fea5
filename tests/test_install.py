"""What others get of this tree: users from `make install`, packagers with its DESTDIR, Debian from `make deb`, an index
from `make dist`.

Slow where something is built, for which setuptools is fetched from an index.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import manual
import pytest
from server import ok, text_stream

from streamcli.version import __version__

ROOT = Path(__file__).parent.parent
SYSTEM = "/usr/bin/python3"
# Where the tests have what streamcli depends on.
PURE = Path(pytest.__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
TOOL = PROJECT["tool"]["setuptools"]
SHARED = {f"{folder}/{Path(name).name}" for folder, names in TOOL["data-files"].items() for name in names}
# What building adds to a source distribution; and what is of no use in one.
MADE = {"PKG-INFO", "setup.cfg"}
LEFT_OUT = {".ci/run", ".gitignore"}
DOCUMENTS = {"CHANGELOG.md.gz", "README.md", "changelog.gz", "copyright"}


def run(*words, **options):
    return subprocess.run(words, capture_output=True, text=True, check=False, **options)


def make(target, *options, **variables):
    # Not with what another make, which may run the tests, was given.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    given = [f"{name}={value}" for name, value in variables.items()]
    return run("make", "--no-print-directory", *options, target, *given, cwd=ROOT, env=environment)


def made(*words, **variables):
    ended = make(*words, **variables)
    assert ended.returncode == 0, ended.stderr


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


# Fast, because nothing is built


def test_every_folder_of_the_package_is_installed():
    folders = [path.parent.relative_to(ROOT) for path in (ROOT / "streamcli").rglob("__init__.py")]
    assert TOOL["packages"] == sorted(".".join(folder.parts) for folder in folders)


def test_what_is_uninstalled_is_all_of_ours_and_nothing_else(tmp_path):
    library = "lib/python3.12/site-packages"
    ours = {"bin/streamcli", "lib/streamcli/pyvenv.cfg", f"{library}/streamcli/__init__.py", *SHARED}
    ours.add(f"{library}/streamcli-{__version__}.dist-info/RECORD")
    others = {"bin/streamcli2", f"{library}/streamcli_more/__init__.py", "share/man/man1/other.1"}
    for name in ours | others:
        path = tmp_path / "usr" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    made("uninstall", DESTDIR=tmp_path, PREFIX="/usr")
    assert files(tmp_path / "usr") == others


def test_a_prefix_that_is_not_absolute_is_refused():
    refused = make("install", "--dry-run", PREFIX="~/here")
    assert refused.returncode == 2
    assert "PREFIX needs an absolute path" in refused.stderr


def test_what_an_index_shows_leads_to_no_file_of_the_tree():
    shown = (ROOT / PROJECT["project"]["readme"]).read_text()
    assert re.findall(r"\]\((?!https://)[^)]*", shown) == []


# Slow


@pytest.fixture(scope="module")
def _index(tmp_path_factory):
    fetched = run(sys.executable, "-m", "pip", "download", "-q", "-d", tmp_path_factory.mktemp("index"), "setuptools")
    if fetched.returncode:
        pytest.skip(f"setuptools cannot be fetched: {fetched.stderr.strip()[-200:]}")


def able(python):
    """The Python, if it can install; else the test is skipped."""
    said = run(python, "-c", "import ensurepip, pip, sys; sys.exit(sys.version_info < (3, 11))")
    return python if said.returncode == 0 else pytest.skip(f"{python} has no pip, no venv or is too old")


def debian(name):
    """Where Debian has one of the files that are not Python's."""
    return f"{name}.gz" if "/man/" in name else name.replace("/site-functions/", "/vendor-completions/")


building = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.usefixtures("_index")]


class TestInstalled:
    pytestmark = building

    @pytest.mark.skipif(not shutil.which("man"), reason="man is not installed")
    @pytest.mark.parametrize("python", [sys.executable, SYSTEM])
    def test_a_user_has_the_command_and_its_manual_until_they_are_uninstalled(self, server, python, tmp_path):
        server.responses = [ok(text_stream("Hello."))]
        prefix = tmp_path / "Ada Lovelace"
        for _again in range(2):
            made("install", PYTHON=able(python), PREFIX=prefix)
        asked = run(prefix / "bin/streamcli", "--base-url", server.url, "hi", stdin=subprocess.DEVNULL, cwd=tmp_path)
        assert (asked.stdout, asked.stderr, asked.returncode) == ("Hello.", "", 0)
        for number in manual.PAGES:
            shown = run("man", "-M", prefix / "share/man", str(number), "streamcli")
            assert shown.stdout.startswith(f"STREAMCLI({number})")
        made("uninstall", PREFIX=prefix)
        assert files(prefix) == set()

    @pytest.mark.parametrize(
        ("python", "prefix"), [(sys.executable, sys.prefix), (SYSTEM, "/usr"), (SYSTEM, "/usr/local")]
    )
    def test_a_package_has_streamcli_alone_where_its_python_looks(self, python, prefix, tmp_path):
        made("install", PYTHON=able(python), PREFIX=prefix, DESTDIR=tmp_path)
        looks = run(python, "-c", "import site; print(*site.getsitepackages(), sep='\\n')").stdout.splitlines()
        [library] = [place for place in looks if os.path.exists(f"{tmp_path}{place}/streamcli")]
        folder = Path(f"{tmp_path}{prefix}")
        beside = {name for name in files(folder) if not f"{prefix}/{name}".startswith(f"{library}/streamcli")}
        assert beside == {"bin/streamcli", *SHARED}
        assert not [name for name in files(tmp_path) if str(tmp_path).encode() in (tmp_path / name).read_bytes()]
        # What a package depends on are other packages.
        path = f"{tmp_path}{library}:{PURE}"
        said = run(python, folder / "bin/streamcli", "--version", env={**os.environ, "PYTHONPATH": path}, cwd=tmp_path)
        assert (said.stdout, said.stderr) == (f"streamcli {__version__}\n", "")
        made("uninstall", PREFIX=prefix, DESTDIR=tmp_path)
        assert files(tmp_path) == set()


# What apt answers when it is asked for what streamcli depends on.
@pytest.fixture(scope="module", params=["true", "false"], ids=["depends", "takes along"])
def package(request, tmp_path_factory):
    if not shutil.which("dpkg-deb"):
        pytest.skip("this is no Debian")
    folder = tmp_path_factory.mktemp("deb")
    (folder / "apt-get").symlink_to(shutil.which(request.param))
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    ended = run(able(SYSTEM), ROOT / "packaging/deb.py", folder, env=environment)
    assert ended.returncode == 0, ended.stderr
    [package] = folder.glob("*.deb")
    return package


class TestDebianPackage:
    pytestmark = building

    @pytest.mark.skipif(not shutil.which("lintian"), reason="lintian is not installed")
    def test_lintian_has_nothing_to_say(self, package):
        assert run("lintian", "--fail-on", "error,warning", package).stdout == ""

    def test_it_has_what_streamcli_needs_or_depends_on_it(self, package, tmp_path):
        subprocess.run(["dpkg-deb", "--extract", package, tmp_path], check=True)
        depends = set(run("dpkg-deb", "--field", package, "Depends").stdout.split())
        needed = {f"python3-{re.match('[a-z]+', line)[0]}" for line in PROJECT["project"]["dependencies"]}
        whole = package.name.endswith("_all.deb")
        assert needed & depends == (needed if whole else set())
        library, others = ("python3/dist-packages", PURE) if whole else ("streamcli", "")
        path = f"{tmp_path}/usr/lib/{library}:{others}"
        said = run(SYSTEM, tmp_path / "usr/bin/streamcli", "--version", env={"PYTHONPATH": path}, cwd=tmp_path)
        assert (said.stdout, said.stderr) == (f"streamcli {__version__}\n", "")
        beside = {name for name in files(tmp_path) if not name.startswith(f"usr/lib/{library}/")}
        documents = {f"usr/share/doc/streamcli/{name}" for name in DOCUMENTS}
        assert beside == {"usr/bin/streamcli", *documents, *(f"usr/{debian(name)}" for name in SHARED)}

    @pytest.mark.parametrize("package", ["false"], indirect=True)
    def test_what_it_lacks_is_installed_by_the_command_that_it_names(self, package, tmp_path):
        subprocess.run(["dpkg-deb", "--extract", package, tmp_path], check=True)
        own = {"HOME": str(tmp_path), "PYTHONPATH": f"{tmp_path}/usr/lib/streamcli", "ANTHROPIC_API_KEY": "key"}
        environment = {**os.environ, **own}
        asking = [SYSTEM, tmp_path / "usr/bin/streamcli", "--proxy", "socks5://localhost:1", "--retries", "0", "hi"]
        command = shlex.split(run(*asking, env=environment).stderr.partition("which needs socksio: ")[2])
        assert "--target" in command  # for this Python is Debian's
        installed = run(*command, env=environment)
        assert installed.returncode == 0, installed.stderr
        assert "cannot connect to the proxy" in run(*asking, env=environment).stderr


class TestDistributed:
    pytestmark = building

    @pytest.fixture
    def tree(self, tmp_path):
        """A copy of what git knows of this tree."""
        known = run("git", "ls-files", cwd=ROOT).stdout.split() if shutil.which("git") else []
        if not known:
            pytest.skip("this tree is in no git repository, which would say what belongs to it")
        for name in known:
            (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / "tree" / name)
        return tmp_path / "tree"

    def built(self, kind, tree):
        """The one distribution of this kind that is made of a tree."""
        ended = run(sys.executable, "-m", "build", kind, "--outdir", tree.with_name("dist"), cwd=tree)
        assert ended.returncode == 0, ended.stdout
        return tree.with_name("dist") / ended.stdout.split()[-1]

    def test_the_source_distribution_is_whole_and_the_same_wheel_is_made_of_it(self, tree, tmp_path):
        whole = files(tree) - LEFT_OUT
        wheel = set(zipfile.ZipFile(self.built("--wheel", tree)).namelist())
        data = f"streamcli-{__version__}.data/data"
        assert {f"{data}/{name}" for name in SHARED} | {name for name in whole if name.startswith("streamcli/")} < wheel
        subprocess.run(["tar", "-xf", self.built("--sdist", tree), "-C", tmp_path], check=True)
        source = tmp_path / f"streamcli-{__version__}"
        assert {name for name in files(source) if not name.startswith("streamcli.egg-info/")} == whole | MADE
        assert set(zipfile.ZipFile(self.built("--wheel", source)).namelist()) == wheel
        # Tests that read more of the tree than the package.
        reading = [f"tests/test_{name}.py" for name in ("citations", "man", "readme", "twins", "typing")]
        tested = run(sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", "not slow", *reading, cwd=source)
        assert tested.returncode == 0, tested.stdout[-3000:]
