"""Look at what a run needs before anything is submitted.

Request:  {"workspace", "readable": [paths], "hub": {"endpoint", "token"} or null}
Answer:   {"problems": [sentence], "notes": [sentence]}

The token comes on stdin and goes into a header, nowhere else.
"""

import json
import os
import tempfile
import urllib.error
import urllib.request


def workspace(path):
    """Problems with the workspace; it is made if it is missing."""
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return []
    except OSError as error:
        return ["the workspace {} cannot be written: {}".format(path, error.strerror)]


def readable(path):
    """Problems with one path that a stage will read."""
    try:
        if os.path.isdir(path):
            os.listdir(path)
        else:
            open(path, "rb").close()
        return []
    except OSError as error:
        return ["{} cannot be read: {}".format(path, error.strerror)]


def hub(endpoint, token):
    """Problems and notes about the Hub's answer to the token."""
    request = urllib.request.Request(
        endpoint.rstrip("/") + "/api/whoami-v2", headers={"Authorization": "Bearer " + token}
    )
    try:
        with urllib.request.urlopen(request, timeout=15) as answer:
            return [], ["the Hub knows the token as {}".format(json.load(answer).get("name"))]
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return ["the Hub at {} refuses the token (HTTP {})".format(endpoint, error.code)], []
        return [], ["the Hub at {} answered HTTP {}".format(endpoint, error.code)]
    except (OSError, ValueError) as error:
        return [], ["the login node does not reach the Hub at {} ({}); jobs may".format(endpoint, error)]


def main(request):
    """Entry point (boot.py): everything that is asked for."""
    problems = workspace(request["workspace"])
    for path in request["readable"]:
        problems += readable(path)
    notes = []
    if request["hub"]:
        more, notes = hub(request["hub"]["endpoint"], request["hub"]["token"])
        problems += more
    return {"problems": problems, "notes": notes}
