"""Exception of the request handlers, and its response for huggingface_hub."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse

# Clients pick their exception class from these codes (huggingface_hub.utils.hf_raise_for_status).
REPO_NOT_FOUND = "RepoNotFound"
REVISION_NOT_FOUND = "RevisionNotFound"
ENTRY_NOT_FOUND = "EntryNotFound"

# huggingface_hub compares with this text to distinguish an invalid token from a missing repository.
BAD_CREDENTIALS = "Invalid credentials in Authorization header"


class HubError(Exception):
    """Refused request: HTTP status, message and, where clients have an exception class for it, a code."""

    def __init__(
        self, status: int, message: str, code: str = "", headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.headers = headers or {}


async def error_response(request: Request, error: Exception) -> JSONResponse:
    """Return JSON plus X-Error-* headers: a HEAD response has no body, so the headers have the message too."""
    assert isinstance(error, HubError)
    # Header values are latin-1 on the wire; a file name in the message may not be.
    text = (
        error.message.encode("ascii", "backslashreplace")
        .decode("ascii")
        .replace("\n", " ")
        .replace("\r", " ")
    )
    headers = {**error.headers, "X-Error-Message": text}
    if error.code:
        headers["X-Error-Code"] = error.code
    return JSONResponse({"error": error.message}, status_code=error.status, headers=headers)
