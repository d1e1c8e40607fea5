"""The manuals in, docs/*.md out, for readers without man(1): `make docs` writes them, by mandoc."""

import subprocess

from manual import FOLDER

DOCS = FOLDER.parent / "docs"
PAGES = sorted(FOLDER.iterdir())


def rendered(page):
    """A page as Markdown."""
    command = ["mandoc", "-T", "markdown", str(page)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    for page in PAGES:
        (DOCS / f"{page.name}.md").write_text(rendered(page))
