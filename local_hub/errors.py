"""The one exception that request handlers raise, and the response for it that huggingface_hub understands."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse

# Clients pick their exception class from these codes (huggingface_hub.utils.hf_raise_for_status).
REPO_NOT_FOUND = "RepoNotFound"
REVISION_NOT_FOUND = "RevisionNotFound"
ENTRY_NOT_FOUND = "EntryNotFound"

# huggingface_hub compares with this text to tell a bad token from a repository that does not exist.
BAD_CREDENTIALS = "Invalid credentials in Authorization header"


class HubError(Exception):
    """A refusal: its HTTP status, a message for people and, where clients have a class for it, a code."""

    def __init__(
        self, status: int, message: str, code: str = "", headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.headers = headers or {}


async def error_response(request: Request, error: Exception) -> JSONResponse:
    """JSON plus the X-Error-* headers: a HEAD answer has no body, so the headers carry the text too."""
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
