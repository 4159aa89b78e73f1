"""Errors of an upload: what they are told as, and which of them are tried again."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from llm_bridge.remote.node.hub import upload_errors
from llm_bridge.remote.node.hub.upload_errors import as_upload_error, with_retries


class Answer(Exception):
    """An HTTP error of huggingface_hub."""

    def __init__(self, status: int, **headers: str) -> None:
        super().__init__(f"answer {status}")
        self.response = SimpleNamespace(status_code=status, headers=headers)


class Steps:
    """A step that fails with each of the given errors once, and records the waits between the tries."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.waits: list[float] = []

    def __call__(self) -> str:
        if self.errors:
            raise self.errors.pop(0)
        return "done"

    def run(self) -> str:
        return with_retries(self, "Uploading", "http://hub", sleep=self.waits.append)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (
            ConnectionError,
            "Data processing error: CAS service error : Reqwest Error: HTTP status client error (403 Forbidden), "
            "domain: http://cas/v1/xorbs/default/ab12",
        ),
        (
            RuntimeError,
            "Data processing error: Token refresh failure: HfHubHTTPError: Client error '401 Unauthorized' for url "
            "'https://hub/api/models/me/m/xet-write-token/main'",
        ),
    ],
)
def test_a_token_that_xet_refuses_is_a_refused_token_and_no_network_problem(
    kind: type[Exception], text: str
) -> None:
    known = as_upload_error(kind(text), "https://hub")
    assert known is not None
    assert (known.exit_code, known.kind) == (3, "token_refused")
    assert "write access" in str(known) and "proxy" not in str(known)


def test_an_error_of_an_upload_thread_is_read_from_its_cause() -> None:
    outer = RuntimeError("Error while uploading 'model.safetensors' to the Hub.")
    outer.__cause__ = Answer(403)
    known = as_upload_error(outer, "https://hub")
    assert known is not None and known.kind == "token_refused"


def test_a_connection_that_is_refused_is_still_a_network_problem() -> None:
    known = as_upload_error(ConnectionError("[Errno 111] Connection refused, port 8443"), "https://hub")
    assert known is not None and known.kind == "hub_unavailable" and "proxy" in str(known)


@pytest.mark.parametrize("status", [409, 412, 429, 500, 502, 503, 504])
def test_a_busy_hub_gets_a_few_tries_with_growing_waits(
    status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    step = Steps(Answer(status), Answer(status))
    assert step.run() == "done"
    first, second = step.waits
    assert 2 <= first <= 3 and 4 <= second <= 5
    assert f"Uploading: the Hub at http://hub answered {status}; try 2 of 5" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "tries"), [("RemoteProtocolError", 2), ("ReadError", 2), ("ReadTimeout", 2), ("ConnectError", 1)]
)
def test_a_connection_that_is_cut_is_made_again_but_not_one_that_could_not_be_made(
    kind: str, tries: int
) -> None:
    error = type(kind, (type("TransportError", (Exception,), {}),), {})("Server disconnected")
    step = Steps(error)
    if tries == 1:
        with pytest.raises(type(error)):
            step.run()
    else:
        assert step.run() == "done"
    assert len(step.waits) == tries - 1


def test_the_hubs_retry_after_is_the_wait() -> None:
    step = Steps(Answer(429, **{"Retry-After": "17"}))
    assert step.run() == "done"
    assert 17 <= step.waits[0] <= 18


def test_a_busy_hub_does_not_get_tries_without_end() -> None:
    step = Steps(*[Answer(503)] * upload_errors.TRIES)
    with pytest.raises(Answer):
        step.run()
    assert len(step.waits) == upload_errors.TRIES - 1


def test_no_other_try_begins_after_the_time_that_the_library_itself_waited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(upload_errors, "RETRY_SECONDS", -1)
    step = Steps(Answer(500))
    with pytest.raises(Answer):
        step.run()
    assert step.waits == []


@pytest.mark.parametrize(
    "error", [Answer(400), Answer(401), Answer(403), Answer(404), Answer(413), Answer(422), ValueError("x")]
)
def test_an_answer_that_no_retry_changes_gets_no_second_try(error: Exception) -> None:
    step = Steps(error)
    with pytest.raises(type(error)):
        step.run()
    assert step.waits == []
