"""What pyproject.toml says of Pythons is true of the program; of packages, `make wheel-test` tries it."""

import re
from pathlib import Path


def test_no_group_of_a_pattern_is_possessive():
    """Pythons before 3.11.5, as Debian 12 has one, match such a group wrongly."""
    modules = (Path(__file__).parent.parent / "streamcli").rglob("*.py")
    assert [path for path in modules if re.search(r"\)(?:[?*+]|\{\d*,?\d*\})\+", path.read_text())] == []
