"""streamcli.protocol.responses: of a page for browsers, what its reader sees."""

import pytest

from streamcli.protocol.responses import words

NGINX = """<html>\r
<head><title>502 Bad Gateway</title></head>\r
<body>\r
<center><h1>502 Bad Gateway</h1></center>\r
<hr><center>nginx/1.22.1</center>\r
</body>\r
</html>"""
SQUID = """<!DOCTYPE html PUBLIC "-//W3C//DTD HTML 4.01//EN" "http://www.w3.org/TR/html4/strict.dtd">
<html><head><meta charset="utf-8"><title>ERROR: The requested URL could not be retrieved</title>
<style type="text/css"><!-- body { margin: 0 } a > b { x: y } --></style></head>
<body id=ERR_ACCESS_DENIED><h1>ERROR</h1><p>Access&nbsp;Denied.</p></body></html>"""


@pytest.mark.parametrize(
    ("page", "said"),
    [
        (NGINX, "502 Bad Gateway nginx/1.22.1"),
        (SQUID, "ERROR: The requested URL could not be retrieved ERROR Access Denied."),
        ("<h1>Too\n  large</h1>", "Too large"),
        ("<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "AccessDenied"),
        ("<p>a &lt; b &amp; c</p>", "a < b & c"),
        ("<script>if (a < b) x()</script>read<script src=x></script> this", "read this"),
        ("<!-- a > b < c -->read<!-- more", "read"),
        ("<p>read</p></script> on", "read on"),
        ("<p>cut in a <a href=", "cut in a"),
        ("<script>never closed", ""),
        ("no page, a < b", "no page, a < b"),
        ("", ""),
    ],
)
def test_what_is_shown_is_what_a_reader_sees(page, said):
    assert words(page) == said
