"""Describe failed HTTP requests, without the exception's text: it may contain a header with the token."""

import http.client

ERRORS = (OSError, ValueError, http.client.HTTPException)


def describe(error: BaseException) -> str:
    """Return the operating system's error message if there is one, else the name of the exception."""
    reason = getattr(error, "reason", None)
    cause = reason if isinstance(reason, Exception) else error
    return (isinstance(cause, OSError) and cause.strerror) or type(cause).__name__
