"""Bytes and values in, bytes and values out: the wire as it is spoken, without a socket.

A request is made of what the caller wants; an event stream becomes events, events become a message; a failure becomes
an error and a wait. Nothing here does input or output, and nothing here knows who asks.
"""
