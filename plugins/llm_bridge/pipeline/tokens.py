"""Check tokens and alert channels from Airflow's host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx

from llm_bridge.config.cluster import Cluster
from llm_bridge.exceptions import ConfigError
from llm_bridge.notifications import channels
from llm_bridge.notifications.config import load_alerts
from llm_bridge.notifications.message import Message
from llm_bridge.remote import connections
from llm_bridge.remote.messages import ERROR, OK, SKIPPED, WARNING, Finding

WANDB = "https://api.wandb.ai"
VIEWER = "query { viewer { username teams { edges { node { name } } } } }"
TIMEOUT_SECONDS = 15
CHECK, ENTITY_CHECK = "W&B key", "W&B entity"
ALERTS = "alerts"


def wandb(cluster: Cluster, recipes: Mapping[str, str | None]) -> list[Finding]:
    """Log in to Weights & Biases with the key of ``wandb_conn_id``, and check that it may log where recipes say.

    Args:
        cluster: The cluster.
        recipes: Recipe whose logger has wandb -> its ``wandb.entity``.
    """
    key, owner = _key(cluster, recipes)
    return [key, *_entities(cluster, recipes, owner)]


def _key(cluster: Cluster, recipes: Mapping[str, str | None]) -> tuple[Finding, tuple[str, list[str]] | None]:
    """Return the finding on the key, and user and teams of a key that W&B accepts."""
    file = f"include/clusters/{cluster.name}.yaml"
    mode = cluster.variables.get("WANDB_MODE", "online")
    if mode != "online":
        why = f"because jobs do not send anything to W&B (WANDB_MODE: {mode} in {file})"
        return Finding(CHECK, SKIPPED, why), None
    if not cluster.wandb_conn_id:
        if not recipes:
            return Finding(CHECK, SKIPPED, "because no recipe logs to wandb"), None
        detail = f"recipes {', '.join(recipes)} log to wandb, and wandb_conn_id in {file} is not set"
        action = (
            "set it to the id of an Airflow connection (type Generic) whose password is the key, log in on the cluster "
            "(wandb login), or remove wandb from their logger"
        )
        return Finding(CHECK, WARNING, detail, action), None
    try:
        key = connections.secret(cluster.wandb_conn_id)
    except ConfigError as error:
        return Finding(CHECK, ERROR, f"wandb_conn_id in {file}: {error}"), None
    server = cluster.variables.get("WANDB_BASE_URL", WANDB).rstrip("/")
    try:
        answer = httpx.post(
            f"{server}/graphql", json={"query": VIEWER}, auth=("api", key), timeout=TIMEOUT_SECONDS
        )
        owner = _owner(answer.json()) if answer.status_code == 200 else None
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, AttributeError, KeyError, TypeError) as error:
        detail = f"{server} does not answer Airflow's host ({type(error).__name__}); it may answer the nodes"
        action = f"check WANDB_BASE_URL in variables of {file}, and the nodes' network"
        return Finding(CHECK, WARNING, detail, action), None
    if owner:
        user, teams = owner
        detail = f"user {user}, may log to {', '.join(teams) or 'its own projects'}"
        return Finding(CHECK, OK, detail), owner
    if answer.status_code in (200, 401, 403):
        detail = f"{server} refuses the key (HTTP {answer.status_code})"
        where = f"Airflow connection {cluster.wandb_conn_id!r} (wandb_conn_id in {file})"
        action = f"store a valid key as the password of {where}"
        return Finding(CHECK, ERROR, detail, action), None
    return Finding(CHECK, WARNING, f"{server} answered HTTP {answer.status_code}", "check again later"), None


def _entities(
    cluster: Cluster, recipes: Mapping[str, str | None], owner: tuple[str, list[str]] | None
) -> list[Finding]:
    """Return a finding for each entity of the recipes; none without an answer of W&B."""
    if owner is None:
        return []
    user, teams = owner
    allowed = [user, *teams]
    named: dict[str, list[str]] = {}
    for recipe, entity in recipes.items():
        if entity:
            named.setdefault(entity, []).append(recipe)
    found = []
    for entity, names in named.items():
        keys = ", ".join(f"include/recipes/{name}.yaml" for name in names)
        if entity.lower() in [name.lower() for name in allowed]:
            found.append(Finding(ENTITY_CHECK, OK, f"{user} may log to {entity} (wandb.entity in {keys})"))
            continue
        detail = f"wandb.entity in {keys}: user {user} is no member of {entity!r} and cannot log to it"
        action = (
            f"choose from {', '.join(allowed)}, have {user} invited to {entity}, or store the key of a member as the "
            f"password of Airflow connection {cluster.wandb_conn_id!r}"
        )
        found.append(Finding(ENTITY_CHECK, ERROR, detail, action))
    return found


def _owner(answer: Any) -> tuple[str, list[str]] | None:
    """Return user and teams of W&B's answer; None for a key that it refuses.

    Raises:
        AttributeError, KeyError, TypeError: The answer has another shape, so that another program answered.
    """
    viewer = (answer.get("data") or {}).get("viewer")
    if not viewer:
        return None
    teams = [str(edge["node"]["name"]) for edge in (viewer.get("teams") or {}).get("edges", [])]
    return str(viewer["username"]), teams


def alerts(sender: str) -> list[Finding]:
    """Send a test message on every alert channel.

    Args:
        sender: Program that sends it, for the message.
    """
    try:
        settings = load_alerts()
    except ConfigError as error:
        return [Finding(ALERTS, ERROR, " ".join(str(error).split()), "correct include/alerts.yaml")]
    if settings.silent:
        detail = "include/alerts.yaml has no channel: no alert is sent"
        return [Finding(ALERTS, WARNING, detail, "set email, slack, http or apprise there")]
    message = Message.build("test", f"{sender}: a test of this alert channel", [("What to do", "nothing")])
    found = []
    for channel, why in channels.deliver(message, settings, TIMEOUT_SECONDS).items():
        name = f"alerts by {channel.name}"
        if why is None:
            found.append(Finding(name, OK, "the test message was sent"))
            continue
        action = (
            f"check the Airflow connection {channel.conn_id!r} and '{channel.name}' in include/alerts.yaml"
        )
        found.append(Finding(name, ERROR, f"the test message was not sent: {why}", action))
    return found
