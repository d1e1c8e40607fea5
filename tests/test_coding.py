"""streamcli.protocol.coding: what was compressed comes out as it was meant, however it is cut."""

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamcli.errors import ProtocolError
from streamcli.protocol import coding

TEXT = b"data: {}\n\n" * 50


def raw_deflate(data):
    made = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return made.compress(data) + made.flush()


CODED = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "deflate, raw": raw_deflate,
    "": bytes,
    "gzip without its header": gzip.compress,
}


def body(name):
    return coding.Decoding("" if "without" in name else name.partition(",")[0])


def decoded(name, pieces):
    made = body(name)
    return b"".join(map(made.decode, pieces)) + made.close()


@pytest.mark.parametrize("name", CODED)
def test_a_body_comes_out_as_it_was_meant_at_every_cut_and_byte_by_byte(name):
    coded = CODED[name](TEXT)
    assert decoded(name, (coded[i : i + 1] for i in range(len(coded)))) == TEXT
    for cut in range(len(coded)):
        assert decoded(name, [coded[:cut], coded[cut:]]) == TEXT


@given(st.binary(max_size=300), st.sampled_from(sorted(CODED)), st.integers(1, 9))
def test_any_bytes_come_out_whatever_the_pieces(data, name, size):
    coded = CODED[name](data)
    if not name and coded.startswith(b"\x1f\x8b"):
        return
    assert decoded(name, [coded[i : i + size] for i in range(0, len(coded), size)]) == data


@pytest.mark.parametrize("name", ["gzip", "deflate", "deflate, raw"])
def test_of_a_body_that_was_cut_what_came_is_there(name):
    coded = CODED[name](bytes(range(256)) * 40)
    out = decoded(name, [coded[:-20]])
    assert out
    assert (bytes(range(256)) * 40).startswith(out)


def test_what_is_flushed_by_the_server_waits_for_nothing():
    made = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    read = coding.Decoding("gzip")
    for line in (b"one\n", b"two\n"):
        assert read.decode(made.compress(line) + made.flush(zlib.Z_SYNC_FLUSH)) == line


def test_broken_compression_is_a_protocol_error():
    with pytest.raises(ProtocolError, match="compression is broken"):
        coding.Decoding("gzip").decode(b"plain text, whatever the header says")


@pytest.mark.parametrize("header", ["", " Identity", "none", "UTF-8", "identity "])
def test_some_names_stand_for_no_coding(header):
    assert coding.of({"content-encoding": header}) == ""


@pytest.mark.parametrize(
    ("name", "known"), [("", True), ("gzip", True), ("br", False), ("zstd", False), ("gzip, gzip", False)]
)
def test_which_codings_can_be_undone_is_known(name, known):
    assert coding.can_undo(name) is known
