"""docs/: the manuals as they are now, and a picture that is small and shows what the command says."""

import shutil

import pytest
from rendered import DOCS, PAGES, rendered


@pytest.mark.skipif(not shutil.which("mandoc"), reason="mandoc is not installed")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_manual_is_rendered_as_it_stands(page):
    assert (DOCS / f"{page.name}.md").read_text() == rendered(page), "run `make docs`"
