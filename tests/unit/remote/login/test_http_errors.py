"""Descriptions of HTTP errors, which must not contain a header."""

from __future__ import annotations

import http.client
import urllib.error

import pytest

from llm_bridge.remote.login import http_errors


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ConnectionRefusedError(111, "Connection refused"), "Connection refused"),
        (urllib.error.URLError(OSError(113, "No route to host")), "No route to host"),
        (urllib.error.URLError("hf_secret"), "URLError"),
        (ValueError("Invalid header value b'Bearer hf_secret'"), "ValueError"),
        (http.client.BadStatusLine("hf_secret"), "BadStatusLine"),
        (TimeoutError("hf_secret"), "TimeoutError"),
    ],
)
def test_a_description_is_the_operating_systems_or_the_name_of_the_exception(
    error: Exception, text: str
) -> None:
    assert isinstance(error, http_errors.ERRORS)
    assert http_errors.describe(error) == text
