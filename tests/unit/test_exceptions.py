"""Exceptions: what is retried, and what is not."""

from __future__ import annotations

import pytest

from llm_bridge import exceptions
from llm_bridge.exceptions import (
    ClusterUnavailable,
    ConfigError,
    LoginDenied,
    LoginNodeUnreachable,
    NoConnection,
    RateLimitExceeded,
    RayClusterEnded,
    RayRequestError,
    RayUnavailable,
    ServiceUnavailable,
    SlurmUnavailable,
    SubmissionUnread,
)


@pytest.mark.parametrize("kind", [LoginNodeUnreachable, LoginDenied, SlurmUnavailable, RateLimitExceeded])
def test_a_cluster_that_does_not_answer_is_an_unavailable_service(kind: type[Exception]) -> None:
    assert issubclass(kind, ClusterUnavailable) and issubclass(kind, ServiceUnavailable)


def test_the_dashboard_of_ray_is_a_service_but_no_cluster() -> None:
    assert issubclass(RayUnavailable, ServiceUnavailable) and not issubclass(
        RayUnavailable, ClusterUnavailable
    )


@pytest.mark.parametrize(
    "kind", [ConfigError, NoConnection, RayRequestError, RayClusterEnded, SubmissionUnread]
)
def test_an_error_of_a_request_or_a_setting_is_no_unavailable_service(kind: type[Exception]) -> None:
    assert not issubclass(kind, ConnectionError)


def test_a_missing_connection_is_a_wrong_setting() -> None:
    assert issubclass(NoConnection, ConfigError)


def test_an_exceeded_rate_limit_has_the_time_until_the_next_command() -> None:
    error = RateLimitExceeded(12.4)
    assert error.seconds == 12.4 and "for 12 s" in str(error) and "rpc_budget" in str(error)


def test_every_exception_has_a_docstring() -> None:
    for kind in vars(exceptions).values():
        if isinstance(kind, type):
            assert kind.__doc__, kind
