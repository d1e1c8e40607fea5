"""Whose certificates are trusted, by option or environment.

Contract: a file or variable that cannot be used is a UsageError that names it.
"""

from __future__ import annotations

import os
import ssl

from streamcli.errors import UsageError, reason


def tls_context(ca_file: str | None = None) -> ssl.SSLContext:
    """The trust that https stands on: `ca_file`, or SSL_CERT_FILE, SSL_CERT_DIR, or certifi and the system's store."""
    variable, folder = map(os.environ.get, ("SSL_CERT_FILE", "SSL_CERT_DIR"))
    file = ca_file or variable
    if folder and not os.path.isdir(folder):
        raise UsageError("SSL_CERT_DIR is not a directory")
    try:
        if file or folder:  # which is trusted alone
            context = ssl.create_default_context(cafile=file, capath=None if file else folder)
        else:
            import certifi  # noqa: PLC0415 - httpx's own, without waiting for httpx

            context = ssl.create_default_context(cafile=certifi.where())
            context.load_default_certs()
    except OSError as fault:
        trusted = "--ca-file" if ca_file else "SSL_CERT_FILE" if variable else "the CA bundle"
        source = "SSLKEYLOGFILE" if fault.filename else trusted  # OpenSSL names no file of its own
        raise UsageError(f"{source} cannot be used: {_reason(fault)}") from None
    context.set_alpn_protocols(["http/1.1"])
    return context


def _reason(fault: OSError) -> str:
    """Without the library and the line of C that OpenSSL puts around it."""
    words = fault.reason.replace("_", " ") if isinstance(fault, ssl.SSLError) and fault.reason else reason(fault)
    return words.lower()
