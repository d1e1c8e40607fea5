"""Bytes and values in, bytes and values out: the wire as it is spoken, without a socket.

What the caller wants becomes a request; an event stream becomes events, events become a message; a failure becomes an
error and a wait. Nothing here does input or output, or knows who uses it.
"""
