"""The library: a request in, a stream of events or a whole message out, synchronous and asynchronous.

The two halves are one source: the synchronous modules are made from the asynchronous ones. No exception but APIError
gets out. Nothing here knows the command, its files or its output.
"""
