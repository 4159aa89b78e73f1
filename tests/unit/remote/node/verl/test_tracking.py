"""Where a training's metrics go: the file of the attempt, and W&B."""

from __future__ import annotations

import io
import urllib.error
import urllib.request
from email.message import Message
from http.client import BadStatusLine
from pathlib import Path
from typing import Any

import pytest

from llm_bridge.remote.node.common.job_io import JobError
from llm_bridge.remote.node.verl import tracking
from tests.unit.remote.node.support import sft_settings

ATTEMPT = Path("/w/sft/attempt-1")


@pytest.mark.parametrize("logger", [["console"], ["file", "console"], []])
def test_the_metrics_always_go_to_a_file_of_the_attempt_too(logger: list[str]) -> None:
    settings = sft_settings(logger=logger)
    assert tracking.loggers(settings) == [*(name for name in logger if name != "file"), "file"]
    added = tracking.environment(settings, {"VERL_FILE_LOGGER_PATH": "/of/all/runs.jsonl"}, ATTEMPT)
    assert added == {"VERL_FILE_LOGGER_PATH": "/w/sft/attempt-1/metrics.jsonl"}


def test_a_logger_whose_package_is_missing_is_refused_before_a_gpu_is_requested(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda name: name == "wandb")
    tracking.check(sft_settings(logger=["console", "wandb", "file"]), {})
    with pytest.raises(JobError) as error:
        tracking.check(sft_settings(logger=["console", "trackio", "vemlp_wandb"]), {})
    assert "logger has trackio, vemlp_wandb, which needs" in str(error.value)
    assert "install trackio volcengine-ml-platform there, or remove trackio, vemlp_wandb" in str(error.value)


KEY = {"WANDB_API_KEY": "secret"}


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Answers of W&B: exceptions, or None; requests replace them."""
    given: list[Any] = []

    def urlopen(request: Any, timeout: float) -> Any:
        answer = given.pop()
        given.append(request)
        if answer:
            raise answer
        return io.BytesIO()

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    monkeypatch.setattr(tracking, "find_spec", lambda name: True)
    return given


def http(code: int) -> urllib.error.HTTPError:
    return urllib.error.HTTPError("http://w", code, "", Message(), None)


def test_a_key_that_wandb_does_not_know_is_refused_before_a_gpu_is_requested(answers: list[Any]) -> None:
    answers.append(http(401))
    with pytest.raises(JobError, match=r"does not know the API key.*wandb_conn_id") as error:
        tracking.check(sft_settings(logger=["wandb"]), {**KEY, "WANDB_BASE_URL": "https://w.example.org/"})
    assert error.value.kind == "token_refused" and "secret" not in str(error.value)
    assert answers[0].full_url == "https://w.example.org/graphql"
    assert answers[0].get_header("Authorization") == "Basic YXBpOnNlY3JldA=="


NO_ANSWER = [OSError("no route"), ValueError("no URL"), BadStatusLine("SSH-2.0")]


@pytest.mark.parametrize("answer", [None, http(403), http(503), *NO_ANSWER])
def test_any_other_answer_of_wandb_refuses_no_run(answer: Any, answers: list[Any]) -> None:
    answers.append(answer)
    tracking.check(sft_settings(logger=["wandb"]), KEY)
    assert len(answers) == 1 and answers[0] is not answer


@pytest.mark.parametrize(
    ("logger", "environ"),
    [
        (["console"], KEY),
        (["wandb"], {}),
        (["wandb"], {**KEY, "WANDB_MODE": "offline"}),
        (["wandb"], {**KEY, "WANDB_MODE": "disabled"}),
    ],
)
def test_wandb_is_not_asked_where_nothing_is_sent_to_it(
    logger: list[str], environ: dict[str, str], answers: list[Any]
) -> None:
    tracking.check(sft_settings(logger=logger), environ)
    assert answers == []


def test_tensorboard_writes_into_the_attempt_unless_the_site_says_where() -> None:
    settings = sft_settings(logger=["tensorboard"])
    assert tracking.environment(settings, {}, ATTEMPT)["TENSORBOARD_DIR"] == f"{ATTEMPT}/tracker_files"
    assert "TENSORBOARD_DIR" not in tracking.environment(settings, {"TENSORBOARD_DIR": "/all"}, ATTEMPT)


def environment(**changes: Any) -> dict[str, str]:
    settings = sft_settings(**{"logger": ["console", "wandb"], "wandb_entity": "team", **changes})
    return tracking.environment(settings, {"WANDB_MODE": "online"}, ATTEMPT)


def test_weights_and_biases_gets_the_teams_name() -> None:
    assert environment()["WANDB_ENTITY"] == "team"
    assert "WANDB_ENTITY" not in environment(logger=["console"])


def test_every_attempt_continues_the_same_wandb_run() -> None:
    added = environment(wandb_run_id="r-sft-0")
    assert (added["WANDB_RUN_ID"], added["WANDB_RESUME"]) == ("r-sft-0", "allow")
    assert "WANDB_RUN_ID" not in environment() and "WANDB_RESUME" not in environment()
    settings = sft_settings(logger=["wandb"], wandb_run_id="r")
    own = tracking.environment(settings, {"WANDB_MODE": "offline", "WANDB_RUN_ID": "mine"}, ATTEMPT)
    assert "WANDB_RUN_ID" not in own and "WANDB_RESUME" not in own


@pytest.mark.parametrize("mode", ["online", "disabled", "offline"])
def test_the_users_choice_of_wandb_mode_stands(mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    added = tracking.environment(sft_settings(logger=["wandb"]), {"WANDB_MODE": mode}, ATTEMPT)
    assert "WANDB_MODE" not in added
    printed = "upload" in capsys.readouterr().out.lower()
    assert printed is (mode == "offline")


def test_wandb_keeps_its_files_in_the_attempt_and_the_end_of_a_training_does_not_wait_for_a_dead_server() -> (
    None
):
    added = environment()
    assert (added["WANDB_DIR"], added["WANDB_FINISH_TIMEOUT"]) == (f"{ATTEMPT}/tracker_files", "300")
    own = {"WANDB_MODE": "online", "WANDB_DIR": "/own", "WANDB_FINISH_TIMEOUT": "0"}
    assert not own.keys() & tracking.environment(sft_settings(logger=["wandb"]), own, ATTEMPT).keys()


@pytest.mark.parametrize(
    ("folder", "command"),
    [
        ("/w/a", "wandb sync /w/a/wandb/offline-run-*"),
        ("/w/run+0:0 1", "wandb sync '/w/run+0:0 1'/wandb/offline-run-*"),
    ],
)
def test_the_command_that_uploads_a_run_that_was_logged_offline_can_be_pasted(
    folder: str, command: str
) -> None:
    assert tracking.sync_command({"WANDB_DIR": folder}) == command


class CommError(Exception):
    """As wandb's."""


class AuthenticationError(CommError):
    """As wandb's."""


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        (AuthenticationError("The API key is invalid"), True),
        (CommError("user is not logged in"), True),
        (CommError("permission denied"), True),
        (CommError("Failed to get resume status for run r: returned error 401: {}"), True),
        (CommError("Failed to get resume status for run r: returned error 404: {}"), False),
        (CommError("Timed out while retrying: HTTP 503: x\nConsider increasing the init_timeout"), False),
        (CommError('Timed out while retrying: Post "http://h/graphql": connect: connection refused'), False),
        (OSError(13, "Permission denied"), False),
    ],
)
def test_only_a_refused_key_ends_a_training(error: Exception, refused: bool) -> None:
    assert tracking.is_refused(error) is refused


def test_a_stages_result_has_the_address_of_its_wandb_run(tmp_path: Path) -> None:
    file = tmp_path / "wandb_run.json"
    for text, found in (
        ('{"url": "https://w/r"}', {"wandb": "https://w/r"}),
        ('{"url": null}', {}),
        ("[]", {}),
        ("", {}),
    ):
        file.write_text(text)
        assert tracking.noted_wandb_run(tmp_path) == found
    file.unlink()
    assert tracking.noted_wandb_run(tmp_path) == {}


def test_an_unreachable_wandb_server_does_not_end_the_training(capsys: pytest.CaptureFixture[str]) -> None:
    environ = {"WANDB_API_KEY": "x", "WANDB_BASE_URL": "http://127.0.0.1:9"}
    added = tracking.environment(sft_settings(logger=["wandb"]), environ, ATTEMPT)
    assert added["WANDB_MODE"] == "offline"
    assert "http://127.0.0.1:9 cannot be reached" in capsys.readouterr().out


def test_a_server_that_is_no_web_server_does_not_end_the_training(
    answers: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    answers.append(BadStatusLine("SSH-2.0"))
    assert tracking.environment(sft_settings(logger=["wandb"]), KEY, ATTEMPT)["WANDB_MODE"] == "offline"
    assert "cannot be reached" in capsys.readouterr().out


def test_without_a_key_wandb_logs_offline_and_names_the_missing_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    added = tracking.environment(sft_settings(logger=["wandb"]), {"HOME": str(tmp_path)}, ATTEMPT)
    assert added["WANDB_MODE"] == "offline"
    assert "wandb_conn_id" in capsys.readouterr().out
