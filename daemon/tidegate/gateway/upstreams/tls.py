"""Whom an upstream behind TLS is trusted by."""

from __future__ import annotations

import ssl


def trusting(authority: str | None) -> ssl.SSLContext:
    """Make a context that trusts the system's authorities, or those certificates (PEM) alone.

    Raises ValueError, whose text has no part of them.
    """
    if authority is None:
        return ssl.create_default_context()
    if not authority:  # which ssl would take for the system's
        raise ValueError("there are no certificates of its ca_file")
    try:
        context = ssl.create_default_context(cadata=authority)
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or "they are damaged"
        raise ValueError(f"the certificates of its ca_file cannot be used: {reason}") from None
    # What is named is trusted, also an issuer that is no root or the server's own certificate.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context
