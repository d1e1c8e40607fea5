"""This tree in, a package for Debian out, into the folder that is named: `make deb` runs it with the system's Python.

Where apt has what streamcli depends on, new enough, the package depends on it, has the library too and is for every
architecture. On an older release it takes that along, as pip finds it, in a folder where only the command looks; then
it is for this architecture and this version of Python.
"""

import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from email.utils import formatdate
from pathlib import Path

TREE = Path(__file__).parent.parent
PROJECT = tomllib.loads((TREE / "pyproject.toml").read_text())["project"]
VERSION = re.search(r'__version__ = "(.*)"', (TREE / "streamcli/version.py").read_text())[1]
# Who makes it, as Debian's own tools are told; else nobody in particular does, for one machine.
MAINTAINER = f"{os.environ.get('DEBFULLNAME', 'Nobody')} <{os.environ.get('DEBEMAIL', 'nobody@streamcli.invalid')}>"
PUBLIC, PRIVATE = "usr/lib/python3/dist-packages", "usr/lib/streamcli"

CONTROL = """\
Package: streamcli
Version: {version}
Architecture: {architecture}
Maintainer: {maintainer}
Installed-Size: {size}
Depends: {depends}
Suggests: bash-completion, jq, libgomp1, python3-pip
Section: net
Priority: optional
Description: Stream answers of the Messages API into shell pipelines
 streamcli sends a prompt to Anthropic's Messages API, or to another server
 that speaks it, and streams the answer to standard output. Its exit status
 tells whether the answer is complete. It answers many prompts at once, runs
 tools, asks for answers that fit a JSON Schema, and keeps conversations in
 files.
"""
CHANGELOG = """\
streamcli ({version}) unstable; urgency=medium

  * Made by make deb; what is new is in CHANGELOG.md.

 -- {maintainer}  {date}
"""
# What Python would compile when root starts the command would stay behind.
SCRIPTS = {
    "postinst": '#!/bin/sh\nset -e\n[ "$1" != configure ] || py3compile -p streamcli /{library}\n',
    "prerm": "#!/bin/sh\nset -e\npy3clean -p streamcli\n",
}


def run(*words: str | Path) -> str:
    return subprocess.run(words, cwd=TREE, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def relations(requirement: str) -> str:
    """A requirement as Debian writes it: "httpx>=0.28,<1" is "python3-httpx (>= 0.28), python3-httpx (<< 1)"."""
    name = re.match(r"\w+", requirement)[0]
    bounds = re.findall(r"([<>]=?)([\d.]+)", requirement)
    return ", ".join(f"python3-{name} ({sign if '=' in sign else sign * 2} {number})" for sign, number in bounds)


def take_along(root: Path) -> None:
    """Move streamcli to the private folder, put what it depends on beside it, and tell the command where that is."""
    private = (root / PUBLIC).rename(root / PRIVATE)
    (root / PUBLIC).parent.rmdir()
    options = ["--quiet", "--disable-pip-version-check", "--no-compile", "--root-user-action", "ignore"]
    run(sys.executable, "-m", "pip", "install", *options, "--target", private, *PROJECT["dependencies"])
    shutil.rmtree(private / "bin")
    # A test of certifi's is executable and no script.
    for path in private.rglob("*.*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    command = root / "usr/bin/streamcli"
    found = f'import sys\nsys.path.insert(0, "/{PRIVATE}")\n'
    command.write_text(command.read_text().replace("import sys\n", found, 1))


def install(root: Path) -> dict[str, str]:
    """Put the files of `make install` below `root`; what there is to say of them in the others."""
    run("make", "-s", "install", f"DESTDIR={root}", "PREFIX=/usr", f"PYTHON={sys.executable}")
    # Where Debian's zsh looks.
    (root / "usr/share/zsh/site-functions").rename(root / "usr/share/zsh/vendor-completions")
    # They are pip's, which is to leave to dpkg what is dpkg's.
    for name in ("INSTALLER", "RECORD", "REQUESTED"):
        next((root / PUBLIC).glob(f"*.dist-info/{name}")).unlink()
    rights = (TREE / "LICENSE").read_text()
    # Of a Python that is newer than most a release has packages that run with it.
    needed = [relations(line) for line in PROJECT["dependencies"] if ";" not in line]
    depends = ", ".join(["python3:any (>= 3.11)", *needed])
    asked = subprocess.run(["apt-get", "--simulate", "satisfy", depends], capture_output=True, check=False)
    if asked.returncode == 0:
        return {"library": PUBLIC, "architecture": "all", "depends": depends, "rights": rights}
    take_along(root)
    others = {path.name.split("-")[0] for path in (root / PRIVATE).glob("*.dist-info")} - {"streamcli"}
    # pip takes what runs with this C library and this Python.
    libc, minor = os.confstr("CS_GNU_LIBC_VERSION").split()[1], sys.version_info.minor
    return {
        "library": PRIVATE,
        "architecture": run("dpkg", "--print-architecture"),
        "depends": f"libc6 (>= {libc}), python3 (>= 3.{minor}), python3 (<< 3.{minor + 1})",
        "rights": f"{rights}\nThe licences of {', '.join(sorted(others))} are in /{PRIVATE}/*.dist-info/licenses.\n",
    }


def document(root: Path, known: dict[str, str]) -> None:
    folder = root / "usr/share/doc/streamcli"
    folder.mkdir(parents=True)
    (folder / "copyright").write_text(known["rights"])
    (folder / "changelog").write_text(CHANGELOG.format(**known))
    for name in ("README.md", "CHANGELOG.md"):
        shutil.copy(TREE / name, folder)
    for path in [*root.glob("usr/share/man/*/*"), folder / "changelog", folder / "CHANGELOG.md"]:
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))
        path.unlink()


def control(root: Path, known: dict[str, str]) -> None:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    size = sum(path.stat().st_size for path in files) // 1024
    sums = [f"{hashlib.md5(path.read_bytes()).hexdigest()}  {path.relative_to(root)}\n" for path in files]
    folder = root / "DEBIAN"
    folder.mkdir()
    (folder / "control").write_text(CONTROL.format(size=size, **known))
    (folder / "md5sums").write_text("".join(sums))
    for name, text in SCRIPTS.items():
        (folder / name).write_text(text.format(**known))
        (folder / name).chmod(0o755)


def main(out: Path) -> None:
    os.umask(0o022)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "root")
        known = {"version": VERSION, "maintainer": MAINTAINER, "date": formatdate(), **install(root)}
        document(root, known)
        control(root, known)
        out.mkdir(parents=True, exist_ok=True)
        run("dpkg-deb", "--root-owner-group", "--build", root, out.resolve())
    print(f"{out}/streamcli_{VERSION}_{known['architecture']}.deb depends on {known['depends']}")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except subprocess.CalledProcessError as fault:
        # It has said why.
        sys.exit(f"make deb: {fault.cmd[0]} ended with status {fault.returncode}")
