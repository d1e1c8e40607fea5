"""The manuals in, docs/*.md out, for readers without man(1): `make docs` writes them, by mandoc.

It gives the manuals themselves the version.
"""

import re
import subprocess

from manual import FOLDER

from streamcli.version import __version__

DOCS = FOLDER.parent / "docs"
PAGES = sorted(FOLDER.iterdir())


def rendered(page):
    """A page as Markdown."""
    command = ["mandoc", "-T", "markdown", str(page)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(re.sub(r"^\.Os .*", f".Os streamcli {__version__}", page.read_text(), flags=re.MULTILINE))
        (DOCS / f"{page.name}.md").write_text(rendered(page))
