"""Whether the Hub can be reached, told in seconds: its client tries for a minute before it says that it cannot."""

from __future__ import annotations

import socket
import urllib.parse
import urllib.request

__all__ = ["unreachable"]

_PATIENCE = 5.0  # seconds that the Hub may take to answer


def unreachable() -> str | None:
    """Why the Hub does not answer, as part of a sentence; None where it does, or where it is not asked directly."""
    from huggingface_hub import constants

    address = urllib.parse.urlsplit(constants.ENDPOINT)
    if constants.HF_HUB_OFFLINE or urllib.request.getproxies() or address.hostname is None:
        return None
    try:
        socket.create_connection((address.hostname, address.port or 443), timeout=_PATIENCE).close()
    except OSError as error:
        return f"{address.hostname} does not answer: {error.strerror or type(error).__name__}"
    return None
