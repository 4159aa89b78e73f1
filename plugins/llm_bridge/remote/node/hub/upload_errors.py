"""Errors of an upload: exit code, failure class and next action; and the tries that a busy Hub gets."""

from __future__ import annotations

import errno
import random
import re
import sys
import time
from collections.abc import Callable
from typing import TypeVar

from llm_bridge.remote import attempt_dir, hub_status

Result = TypeVar("Result")

# Tries of one step of an upload, and the time after which no other try begins: huggingface_hub and Xet repeat a
# request themselves first, for minutes.
TRIES = 5
RETRY_SECONDS = 240
# The wait before the second try; it doubles.
FIRST_WAIT_SECONDS = 2.0
MAX_WAIT_SECONDS = 60.0

# Errors of httpx and httpx2, and Python's own, for a connection that had been made.
CUT_CONNECTIONS = {
    *("RemoteProtocolError", "ReadError", "WriteError", "ReadTimeout", "WriteTimeout"),
    *("ConnectionResetError", "BrokenPipeError"),
}

# Xet's own client is not written in Python: the status of an answer is only in the text of its exceptions, such as
# "HTTP status client error (403 Forbidden) for url (...)" or "Client error '401 Unauthorized' for url".
_STATUS_IN_TEXT = re.compile(
    r"(?:status|error|code)\b[^\n\d]{0,40}?\b([45]\d\d)\b(?=[ '),:]|$)", re.IGNORECASE
)


class UploadError(Exception):
    """A failure that is reported to the user without a traceback.

    Args:
        text: Message for the user.
        kind: Failure class, a key of ``llm_bridge/diagnosis/classes.py``; None for the class of the exception.

    Attributes:
        exit_code: Exit code of the program.
        kind: Failure class; None if none applies.
    """

    exit_code = 1
    kind: str | None = None

    def __init__(self, text: str, kind: str | None = None) -> None:
        super().__init__(text)
        self.kind = kind or self.kind

    def as_reason(self, text: str) -> attempt_dir.Reason:
        """Return the content of ``reason.json``.

        Args:
            text: Message without secrets.
        """
        return attempt_dir.Reason(text, retry=self.exit_code == UploadError.exit_code, kind=self.kind)


class BadInput(UploadError):
    """The settings or the model folder are wrong."""

    exit_code = 2
    kind = "bad_config"


class BadToken(UploadError):
    """The token is missing, was refused, or has no write access to the repository."""

    exit_code = 3
    kind = "token_refused"


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status that an exception reports, or one that it was raised from; None without one.

    Args:
        error: The exception.
    """
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return int(status)
    # The types of Xet's exceptions; an OSError with a file name is of the file system.
    if not isinstance(error, (RuntimeError, OSError)) or getattr(error, "filename", None):
        return None
    found = _STATUS_IN_TEXT.search(str(error))
    return int(found[1]) if found else None


def with_retries(
    step: Callable[[], Result],
    name: str,
    endpoint: str,
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> Result:
    """Return the result of a step of an upload; repeat it while the Hub is busy, has an error or cuts the connection.

    Args:
        step: The step. It can be repeated: it looks at the state of the Hub first.
        name: Name of the step, for the log.
        endpoint: URL of the Hub.
        sleep: Waits for a number of seconds.

    Raises:
        Exception: That of the last try, or one that no repetition changes.
    """
    started = time.monotonic()
    for number in range(1, TRIES + 1):
        try:
            return step()
        except Exception as error:
            known = as_upload_error(error, endpoint)
            answer = next((found for cause in _chain(error) if (found := _temporary(cause))), None)
            busy = known is not None and known.kind == "hub_unavailable" and answer is not None
            if not busy or number == TRIES or time.monotonic() - started > RETRY_SECONDS:
                raise
            seconds = _wait_seconds(error, number)
            print(f"{name}: the Hub at {endpoint} {answer}; try {number + 1} of {TRIES} in {seconds:.0f} s")
            sleep(seconds)
    raise AssertionError("unreachable")


def _temporary(error: BaseException) -> str | None:
    """Return what the Hub did, if it was reached: its answer, or that it cut the connection; None otherwise."""
    if status := status_of(error):
        return f"answered {status}"
    is_cut = {kind.__name__ for kind in type(error).__mro__} & CUT_CONNECTIONS
    return f"cut the connection ({error})" if is_cut else None


def _chain(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error and error not in found:
        found.append(error)
        error = error.__cause__
    return found


def _wait_seconds(error: BaseException, number: int) -> float:
    """Return the Hub's own Retry-After, else a growing wait; with a random part, for uploads that failed together."""
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    asked = str(headers.get("Retry-After", ""))
    seconds = float(asked) if asked.isdigit() else FIRST_WAIT_SECONDS * 2 ** (number - 1)
    return min(seconds, MAX_WAIT_SECONDS) + random.uniform(0, 1)


def as_upload_error(error: BaseException, endpoint: str) -> UploadError | None:
    """Return an exception of huggingface_hub as an error with the next action; None for an unexpected exception.

    Args:
        error: The exception.
        endpoint: URL of the Hub.
    """
    status, detail = status_of(error), " ".join(str(error).split())
    if status == 403 and re.search("storage (limit|patterns)", detail):
        return UploadError(
            f"the Hub at {endpoint} has no more room for this account: {detail}\nFree space there, upgrade its "
            "plan, or use a public repository or another owner.",
            "disk_full",
        )
    if status in hub_status.TOKEN_REFUSED:
        return BadToken(
            f"the Hub at {endpoint} does not allow this token to do that ({status}): {detail}\nUse a token "
            "with write access to the repository's owner, or a repo_id whose owner the token may write to."
        )
    if status is not None and hub_status.is_final(status):
        return BadInput(
            f"the Hub at {endpoint} refuses this upload ({status}), also if it is tried again: {detail}"
        )
    if status == 404:
        return UploadError(
            f"the Hub at {endpoint} answered 404: {detail}\nThe repository or the branch was removed meanwhile, or "
            "this token may not see it: the Hub answers 404 for a private repository of others. Check both, then run "
            "this again."
        )
    if status is not None:
        kind = "hub_unavailable" if hub_status.is_unavailable(status) else None
        return UploadError(
            f"the Hub at {endpoint} answered {status}: {detail}\nRun this again to continue.", kind
        )
    if isinstance(error, ImportError):
        text = (
            f"{error}. Activate an environment that has the package; the current Python is {sys.executable}"
        )
        return UploadError(text, "environment")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UploadError(f"{error.strerror}: {error.filename or 'a file'}", "disk_full")
    if isinstance(error, OSError) and error.filename:
        return BadInput(f"{error.strerror}: {error.filename}", "missing_path")
    # By name, because the HTTP library is httpx in huggingface_hub 1.x and httpx2 in 2.x.
    if {kind.__name__ for kind in type(error).__mro__} & {"TransportError", "ConnectionError"}:
        return UploadError(
            f"cannot reach the Hub at {endpoint}: {detail}\nCheck HF_ENDPOINT (--endpoint), HF_HUB_OFFLINE, "
            "the proxy variables, and whether this node has access to that network; then run this again.",
            "hub_unavailable",
        )
    # An upload thread's error arrives wrapped in a RuntimeError without details.
    return as_upload_error(error.__cause__, endpoint) if error.__cause__ else None
