"""One request to the dashboard of a Ray cluster of ours, from the login node.

Request:  {"directory": the cluster's attempt directory, "method", "path", "body": JSON or null, "seconds"}
Answer:   {"status": 200, "text"}  or  {"unreachable": why}

So neither port forwarding has to be allowed, nor does the cluster's token leave the site.
"""

import json
import os
import urllib.error
import urllib.request

import files


def main(request):
    """Entry point (boot.py)."""
    directory = request["directory"]
    cluster = files.read_json(os.path.join(directory, "cluster.json"))
    token = files.read(os.path.join(directory, "ray_token"))
    if not cluster or not token:
        return {"unreachable": "%s/cluster.json is not there (yet): the Ray cluster is not up" % directory}
    asked = urllib.request.Request(
        cluster["dashboard"] + request["path"],
        data=None if request["body"] is None else json.dumps(request["body"]).encode(),
        headers={"Authorization": "Bearer " + token, "Content-Type": "application/json"},
        method=request["method"],
    )
    # Login nodes often have a proxy for the internet, which knows nothing of the cluster's own network.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(asked, timeout=request["seconds"]) as answer:
            return {"status": answer.status, "text": answer.read().decode("utf-8", "replace")}
    except urllib.error.HTTPError as error:
        return {"status": error.code, "text": error.read().decode("utf-8", "replace")}
    except (OSError, ValueError) as error:
        return {"unreachable": "%s does not answer: %s" % (cluster["dashboard"], error)}
