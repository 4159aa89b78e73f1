"""HTTP statuses of a Hub: those that no retry changes. The only table, for uploads, downloads and the check.

Standard library only, Python 3.6 or newer: this is sent to the login node and to the jobs.
"""

TOKEN_REFUSED = (401, 403)
# Bad Request, Gone, Content Too Large, URI Too Long, Unsupported Media Type, Unprocessable Content, Unavailable For
# Legal Reasons: the request itself is wrong.
FINAL = (400, 410, 413, 414, 415, 422, 451)
# Request Timeout, Conflict and Precondition Failed (another commit came first), Too Early, Too Many Requests.
BUSY = (408, 409, 412, 425, 429)


def is_final(status: int) -> bool:
    """Return True if the same request gets the same answer again; the Hub's message says why."""
    return status in FINAL


def is_unavailable(status: int) -> bool:
    """Return True if the Hub answers that it cannot do this now."""
    return status in BUSY or status >= 500
