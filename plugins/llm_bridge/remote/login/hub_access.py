"""Check a Hub token on the login node: accepted by the Hub, and allowed to write to the repository of the upload.

Account, role, organisations and the permissions of a fine-grained token are all in the answer to ``whoami-v2``. The
token is sent only as a header, and in no message.
"""

import json
import os
import urllib.error
import urllib.request
from typing import Any, Dict, List

from llm_bridge.remote import hub_status
from llm_bridge.remote.login import http_errors
from llm_bridge.remote.messages import CheckAnswer, HubAccess

TIMEOUT_SECONDS = 15
WRITE = "repo.write"


def check(hub: HubAccess) -> CheckAnswer:
    """Return the problems with the token, and notes on the Hub."""
    endpoint = hub.endpoint
    try:
        token = hub.token or _read(hub.token_file)
    except OSError as error:
        return CheckAnswer(problems=["%s: %s" % (hub.source, error.strerror)])
    try:
        request = urllib.request.Request(
            endpoint.rstrip("/") + "/api/whoami-v2", headers={"Authorization": "Bearer " + token}
        )
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
            account = json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code in hub_status.TOKEN_REFUSED:
            return CheckAnswer(
                problems=[
                    "the Hub at %s refuses the token (HTTP %s): store a valid one in %s"
                    % (endpoint, error.code, hub.source)
                ]
            )
        if hub_status.is_final(error.code):
            problem = "the Hub at %s refuses the request (HTTP %s): is HF_ENDPOINT the URL of a Hub?"
            return CheckAnswer(problems=[problem % (endpoint, error.code)])
        return CheckAnswer(notes=["the Hub at %s answered HTTP %s" % (endpoint, error.code)])
    except http_errors.ERRORS as error:
        cause = http_errors.describe(error)
        note = "the Hub at %s is unreachable from the login node (%s); it may be reachable from the nodes"
        return CheckAnswer(notes=[note % (endpoint, cause)])
    if not isinstance(account, dict):
        return CheckAnswer(notes=["the Hub at %s did not describe the token's account" % endpoint])
    notes = ["the token belongs to the Hub account %s" % account.get("name")]
    return CheckAnswer(cannot_write(account, hub) if hub.repo_id else [], notes)


def cannot_write(account: Dict[str, Any], hub: HubAccess) -> List[str]:
    """Return why a token cannot write to the repository; nothing if it can, or if the answer does not tell.

    Args:
        account: The Hub's answer to ``whoami-v2``.
        hub: The Hub and the repository.
    """
    name, repo_id = str(account.get("name")), hub.repo_id
    owner = repo_id.partition("/")[0].lower()
    token = _dict(_dict(account.get("auth")).get("accessToken"))
    role = token.get("role")
    create = "create one at %s/settings/tokens and store it in %s" % (hub.endpoint.rstrip("/"), hub.source)
    if role == "read":
        problem = "the Hub token of %s is read-only, and the upload to %s needs the role 'write': %s"
        return [problem % (name, repo_id, create)]
    if role == "fineGrained":
        if _granted(_dict(token.get("fineGrained")), owner, repo_id.lower()):
            return []
        problem = "the fine-grained Hub token %r of %s has no write access (%s) to %s: add it, or %s"
        return [problem % (token.get("displayName"), name, WRITE, repo_id, create)]
    if not isinstance(account.get("orgs"), list) or owner == name.lower():
        return []
    orgs = [_dict(org) for org in account["orgs"]]
    allowed = [str(org.get("name")) for org in orgs if org.get("roleInOrg") not in ("read", "no_access")]
    if owner in [org.lower() for org in allowed]:
        return []
    is_member = owner in [str(org.get("name")).lower() for org in orgs]
    because = "is a member of that organisation, but may only read" if is_member else "is no member of it"
    problem = (
        "the Hub account %s cannot write to %s: it %s. Set hub.repo_id in the recipe, or the Hub "
        "repository in the trigger form, to OWNER/NAME with one of these owners: %s"
    )
    return [problem % (name, repo_id, because, ", ".join([name, *allowed]))]


def _granted(grants: Dict[str, Any], owner: str, repo_id: str) -> bool:
    if WRITE in (grants.get("global") or ()):
        return True
    for scope in grants.get("scoped") or ():
        if WRITE not in (_dict(scope).get("permissions") or ()):
            continue
        entity = _dict(_dict(scope).get("entity"))
        kind, name = entity.get("type"), str(entity.get("name")).lower()
        # Repositories of a resource group are not listed in the answer.
        if kind == "resource-group" or name == (owner if kind in ("user", "org") else repo_id):
            return True
    return False


def _dict(value: Any) -> Dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _read(path: str) -> str:
    with open(os.path.expanduser(path), encoding="utf-8") as stream:
        return stream.read().strip()
