"""A request in, the response's bytes out as the network brings them: sockets, TLS, proxies, timeouts, tapes.

The only owner of httpx, httpcore and h11. Every fault of the network leaves as one of our errors. Nothing is retried,
redirected or parsed here beyond HTTP itself. `connection`, `body`, `sending` and `transport` are made from their
`async_` sources; only the wires under them are written twice.
"""
