"""Configure where verl logs metrics: the file of the attempt, and the trackers of the recipe's ``logger``."""

from __future__ import annotations

import base64
import contextlib
import http.client
import os
import re
import shlex
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from llm_bridge.remote import attempt_dir
from llm_bridge.remote.node.common.job_io import JobError, Settings, log_line, read_json, write_json

# verl's logger that writes JSON lines, and the environment variable with the file's path (verl/utils/tracking.py).
FILE = "file"
FILE_VARIABLE = "VERL_FILE_LOGGER_PATH"
SERVER = "https://api.wandb.ai"
WANDB_TIMEOUT_SECONDS = 10
# Errors where there is no server, or one that is no web server, or where its address is none.
NO_ANSWER = (OSError, ValueError, http.client.HTTPException)
# Time for which the end of a training waits until W&B has all; without it, it waits for ever for a dead server. What is
# missing stays on disk.
FINISH_TIMEOUT_SECONDS = "300"
OFFLINE = "offline"
# Logger -> the module that verl imports for it, and the package that has the module.
MODULES = {
    "wandb": ("wandb", "wandb"),
    "trackio": ("trackio", "trackio"),
    "tensorboard": ("tensorboard", "tensorboard"),
    "mlflow": ("mlflow", "mlflow"),
    "swanlab": ("swanlab", "swanlab"),
    "clearml": ("clearml", "clearml"),
    "vemlp_wandb": ("volcengine_ml_platform", "volcengine-ml-platform"),
    "rl_insight": ("rl_insight", "rl-insight"),
}


def loggers(settings: Settings) -> list[str]:
    """Return verl's ``trainer.logger``: the recipe's, and always the file with the metrics."""
    return [*(name for name in settings["logger"] if name != FILE), FILE]


def check(settings: Settings, environ: Mapping[str, str]) -> None:
    """Look for the packages of the recipe's loggers, without importing them, and ask W&B about the key.

    Args:
        settings: The stage's settings.json.
        environ: Environment variables.

    Raises:
        JobError: A package is missing, or W&B does not know the key.
    """
    missing = [name for name in settings["logger"] if name in MODULES and not find_spec(MODULES[name][0])]
    if missing:
        packages = " ".join(MODULES[name][1] for name in missing)
        raise JobError(
            f"the recipe's logger has {', '.join(missing)}, which needs Python packages that this environment lacks "
            f"({sys.prefix}): install {packages} there, or remove {', '.join(missing)} from logger",
            kind="bad_config",
        )
    if "wandb" in settings["logger"] and environ.get("WANDB_MODE", "online") == "online":
        _check_key(environ)


def _check_key(environ: Mapping[str, str]) -> None:
    """Refuse a key that W&B answers with 401; without an answer the training logs offline, or asks again."""
    key = environ.get("WANDB_API_KEY")
    if not key:
        return
    server = environ.get("WANDB_BASE_URL", SERVER).rstrip("/")
    sign_in = base64.b64encode(f"api:{key}".encode()).decode()
    headers = {"Authorization": f"Basic {sign_in}", "Content-Type": "application/json"}
    try:
        request = urllib.request.Request(f"{server}/graphql", b'{"query": "{viewer {id}}"}', headers)
        urllib.request.urlopen(request, timeout=WANDB_TIMEOUT_SECONDS).close()
    except urllib.error.HTTPError as error:
        if error.code == 401:
            raise JobError(
                f"Weights & Biases at {server} does not know the API key (401). Store a valid key in the connection "
                "wandb_conn_id of the cluster file, or remove wandb from the recipe's logger",
                kind="token_refused",
            ) from None
    except NO_ANSWER:
        pass


def environment(settings: Settings, environ: Mapping[str, str], attempt: Path) -> dict[str, str]:
    """Return environment variables for the processes that log.

    Args:
        settings: Has ``logger`` and optionally ``wandb_entity`` and ``wandb_run_id``.
        environ: The variables that they inherit.
        attempt: The attempt's directory.
    """
    # The trackers' own default is the working directory, which on a Ray cluster is on a node's disk.
    variables = {FILE_VARIABLE: str(attempt / attempt_dir.METRICS)}
    if "tensorboard" in settings["logger"] and "TENSORBOARD_DIR" not in environ:
        variables["TENSORBOARD_DIR"] = str(attempt / attempt_dir.TRACKER_FILES)
    if "wandb" in settings["logger"]:
        variables |= _wandb(settings, environ, attempt)
    return variables


def _wandb(settings: Settings, environ: Mapping[str, str], attempt: Path) -> dict[str, str]:
    variables = {
        "WANDB_DIR": str(attempt / attempt_dir.TRACKER_FILES),
        "WANDB_FINISH_TIMEOUT": FINISH_TIMEOUT_SECONDS,
    }
    variables = {name: value for name, value in variables.items() if name not in environ}
    if settings.get("wandb_entity"):
        variables["WANDB_ENTITY"] = settings["wandb_entity"]
    if settings.get("wandb_run_id") and "WANDB_RUN_ID" not in environ:
        # All attempts of a stage are one run of W&B, which the later ones continue.
        variables["WANDB_RUN_ID"] = settings["wandb_run_id"]
        variables["WANDB_RESUME"] = "allow"
    command = sync_command({**environ, **variables})
    if environ.get("WANDB_MODE") == OFFLINE:
        log_line(f"Weights & Biases: offline (WANDB_MODE). Upload it later with: {command}")
    elif "WANDB_MODE" not in environ and (problem := _wandb_problem(environ)):
        log_line(f"WARNING: Weights & Biases: {problem}. Logging offline; upload it later with: {command}")
        variables["WANDB_MODE"] = OFFLINE
    return variables


def _wandb_problem(environ: Mapping[str, str]) -> str | None:
    """Return the obstacle to an online W&B run, or None."""
    if not environ.get("WANDB_API_KEY") and not (Path(environ.get("HOME", "/")) / ".netrc").exists():
        return "no API key (wandb_conn_id of the cluster's file)"
    server = environ.get("WANDB_BASE_URL", SERVER)
    try:
        urllib.request.urlopen(server, timeout=WANDB_TIMEOUT_SECONDS).close()
    except urllib.error.HTTPError:
        return None  # the server is reachable
    except NO_ANSWER as error:
        return f"{server} cannot be reached from {os.uname().nodename} ({error})"
    return None


def sync_command(environ: Mapping[str, str]) -> str:
    """Return the command that uploads what W&B has logged offline in this attempt."""
    return f"wandb sync {shlex.quote(environ.get('WANDB_DIR', '.'))}/wandb/offline-run-*"


def is_refused(error: Exception) -> bool:
    """Return True if W&B refuses the key or how it is used; False where the server gives no answer, or another one.

    wandb 0.31.0 raises a CommError for most answers; for 401 and 403 its text has a status code only where the run may
    be resumed.
    """
    if type(error).__name__ in ("AuthenticationError", "UsageError"):
        return True
    return bool(
        re.match(r"user is not logged in|permission denied|.*(\(Error|returned error) 40[13]: ", str(error))
    )


def note_wandb_run(attempt: Path) -> None:
    """Leave the address of the W&B run of this process in the attempt's directory, where Airflow looks for it."""
    import wandb

    run = wandb.run
    if run is None or run.disabled:
        return
    url = None if run.offline else run.url
    with contextlib.suppress(OSError):
        write_json(attempt / attempt_dir.WANDB_RUN, {"id": run.id, "url": url})
    if url:
        log_line(f"W&B run: {url}")


def noted_wandb_run(attempt: Path) -> dict[str, str]:
    """Return what the result of a stage has about its W&B run: ``wandb``, its address, if there is one."""
    found = read_json(attempt / attempt_dir.WANDB_RUN)
    url = found.get("url") if isinstance(found, dict) else None
    return {"wandb": url} if isinstance(url, str) else {}
