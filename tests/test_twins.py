"""The synchronous half of the library is made from the asynchronous one, and committed as it is made."""

import pytest
from twins import RULES, SOURCES, made, synchronous, twin


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_a_synchronous_module_is_what_is_made_from_its_source(source):
    assert twin(source).read_text() == made(source), "run `make twins`"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule[0])
def test_no_rule_can_be_left_out(rule):
    others = [other for other in RULES if other is not rule]
    texts = [source.read_text() for source in SOURCES]
    assert [synchronous(text, others) for text in texts] != [synchronous(text) for text in texts]
