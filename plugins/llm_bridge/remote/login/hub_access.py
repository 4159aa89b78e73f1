"""Check a Hub token on the login node: accepted by the Hub, and allowed to write to the repository of the upload.

Account, role, organisations and the permissions of a fine-grained token are all in the answer to ``whoami-v2``. The
token is sent only as a header, and in no message.
"""

import json
import os
import urllib.error
import urllib.request
from typing import Any, Dict, List, Optional

from llm_bridge.remote import hub_status
from llm_bridge.remote.login import http_errors
from llm_bridge.remote.messages import ERROR, OK, WARNING, Finding, HubAccess

TIMEOUT_SECONDS = 15
WRITE = "repo.write"
CHECK, WRITE_CHECK = "Hub token", "Hub repository"
LATER = "check again later; uploads are retried"


def check(hub: HubAccess) -> List[Finding]:
    """Check that the Hub accepts the token, and that the token may write to the repository."""
    endpoint = hub.endpoint
    try:
        token = hub.token or _read(hub.token_file)
    except OSError as error:
        detail = "%s: %s" % (hub.source, error.strerror)
        return [Finding(CHECK, ERROR, detail, "store a token there")]
    try:
        request = urllib.request.Request(
            endpoint.rstrip("/") + "/api/whoami-v2", headers={"Authorization": "Bearer " + token}
        )
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
            account = json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code in hub_status.TOKEN_REFUSED:
            detail = "the Hub at %s refuses the token (HTTP %s)" % (endpoint, error.code)
            return [Finding(CHECK, ERROR, detail, "store a valid one in %s" % hub.source)]
        if hub_status.is_final(error.code):
            detail = "the Hub at %s refuses the request (HTTP %s)" % (endpoint, error.code)
            return [Finding(CHECK, ERROR, detail, "check that HF_ENDPOINT is the URL of a Hub")]
        return [Finding(CHECK, WARNING, "the Hub at %s answered HTTP %s" % (endpoint, error.code), LATER)]
    except http_errors.ERRORS as error:
        cause = http_errors.describe(error)
        detail = "the Hub at %s is unreachable from the login node (%s); it may be reachable from the nodes"
        return [
            Finding(
                CHECK, WARNING, detail % (endpoint, cause), "check that the nodes of stage upload reach it"
            )
        ]
    if not isinstance(account, dict):
        detail = "the Hub at %s did not describe the token's account" % endpoint
        return [Finding(CHECK, WARNING, detail, LATER)]
    found = [Finding(CHECK, OK, "the token belongs to the Hub account %s" % account.get("name"))]
    if hub.repo_id:
        wrong = cannot_write(account, hub)
        found.append(wrong or Finding(WRITE_CHECK, OK, "the token may write to %s" % hub.repo_id))
    return found


def cannot_write(account: Dict[str, Any], hub: HubAccess) -> Optional[Finding]:
    """Return why a token cannot write to the repository; None if it can, or if the answer does not tell.

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
        detail = "the Hub token of %s is read-only, and the upload to %s needs the role 'write'"
        return Finding(WRITE_CHECK, ERROR, detail % (name, repo_id), create)
    if role == "fineGrained":
        if _granted(_dict(token.get("fineGrained")), owner, repo_id.lower()):
            return None
        detail = "the fine-grained Hub token %r of %s has no write access (%s) to %s"
        found = detail % (token.get("displayName"), name, WRITE, repo_id)
        return Finding(WRITE_CHECK, ERROR, found, "add it, or " + create)
    if not isinstance(account.get("orgs"), list) or owner == name.lower():
        return None
    orgs = [_dict(org) for org in account["orgs"]]
    allowed = [str(org.get("name")) for org in orgs if org.get("roleInOrg") not in ("read", "no_access")]
    if owner in [org.lower() for org in allowed]:
        return None
    is_member = owner in [str(org.get("name")).lower() for org in orgs]
    because = "is a member of that organisation, but may only read" if is_member else "is no member of it"
    detail = "the Hub account %s cannot write to %s: it %s" % (name, repo_id, because)
    action = (
        "set hub.repo_id in the recipe, or the Hub repository in the trigger form, to OWNER/NAME with one of these "
        "owners: %s" % ", ".join([name, *allowed])
    )
    return Finding(WRITE_CHECK, ERROR, detail, action)


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
