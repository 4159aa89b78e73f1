"""Send one request to the dashboard of a Ray cluster of llm-bridge, from the login node.

Takes a RayHttpRequest and returns a RayHttpAnswer (``remote/messages.py``). No port has to be forwarded, and the
cluster's token never leaves the site.
"""

import json
import os
import urllib.error
import urllib.request
from typing import Any, Dict

from llm_bridge.remote import attempt_dir
from llm_bridge.remote.login import http_errors
from llm_bridge.remote.messages import RayHttpAnswer, RayHttpRequest, decode, encode


def send(asked: RayHttpRequest) -> RayHttpAnswer:
    """Send a request and return the answer of the dashboard."""
    directory = asked.directory
    cluster = attempt_dir.read_json(os.path.join(directory, attempt_dir.CLUSTER))
    token = attempt_dir.read(os.path.join(directory, attempt_dir.RAY_TOKEN))
    if not cluster or not token:
        why = "%s/%s is missing: the Ray cluster is not up" % (directory, attempt_dir.CLUSTER)
        return RayHttpAnswer(unreachable=why)
    request = urllib.request.Request(
        cluster["dashboard"] + asked.path,
        data=None if asked.body is None else json.dumps(asked.body).encode(),
        headers={"Authorization": "Bearer " + token, "Content-Type": "application/json"},
        method=asked.method,
    )
    # No proxy: a login node's proxy for the internet often cannot reach the cluster's own network.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=asked.timeout_seconds) as answer:
            return RayHttpAnswer(answer.status, answer.read().decode("utf-8", "replace"))
    except urllib.error.HTTPError as error:
        return RayHttpAnswer(error.code, error.read().decode("utf-8", "replace"))
    except http_errors.ERRORS as error:
        why = "%s does not answer: %s" % (cluster["dashboard"], http_errors.describe(error))
        return RayHttpAnswer(unreachable=why)


def main(request: Dict[str, Any]) -> Any:
    """Send the request."""
    return encode(send(decode(RayHttpRequest, request)))
