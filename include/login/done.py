"""Whether a stage's result is there already, and what a stage that begins may go on from.

Request:  {"directory": stage directory, "stage": see below}
Answer:   {"done": {"job_id", "directory": attempt directory, "outcome", "started", "result"}} or {"done": null}

A stage is {"fingerprint", "inputs": [stage directories], "outputs": [paths], "shared": [paths], "force": bool}.
`outputs` are what this stage alone makes; `shared` is what several runs use. An attempt that makes the results of more
stages than its own has "also": [{"name", "directory", ...as above}], each of them behind the ones before.
Three files tell a stage's story:

`done.json`   the result is there: fingerprint, the inputs' ids, an id of its own. The job writes it as it ends well
              (batch.sh.j2: a copy of its attempt's stage.json).
`begun.json`  which attempt began the outputs that lie there, finished or not, and with which fingerprint and inputs.
`force`       an empty file that a user puts there: the next attempt begins anew.

A result's id names the attempt that began it: one that was made anew is another one for the stages behind it.
"""

import json
import os

import files


def ids(inputs):
    """The ids of the results that a stage takes; None for one that is not there."""
    found = ((path, files.read_json(os.path.join(path, "done.json"))) for path in inputs)
    return {path: done["id"] if done else None for path, done in found}


def finished(directory, stage):
    """The finished result of just this stage, or None."""
    done = files.read_json(os.path.join(directory, "done.json"))
    if not done or stage["force"] or os.path.exists(os.path.join(directory, "force")):
        return None
    if done["fingerprint"] != stage["fingerprint"] or done["inputs"] != ids(stage["inputs"]):
        return None
    if not all(os.path.exists(path) for path in stage["outputs"] + stage["shared"]):
        return None
    attempt = os.path.join(directory, done["attempt"])
    return {
        "job_id": files.read(os.path.join(attempt, "job_id")),
        "directory": attempt,
        "started": files.read_json(os.path.join(attempt, "started.json")),
        "outcome": files.read_json(os.path.join(attempt, "outcome.json")),
        "result": files.read_json(os.path.join(attempt, "result.json")),
    }


def set_aside(stage, until):
    """Rename what an earlier, other attempt has made: it is never deleted, and never gone on from."""
    moved = []
    for path in stage["outputs"]:
        aside = "%s.until-%s" % (path, until)
        if os.path.exists(path) and not os.path.exists(aside):
            os.rename(path, aside)
            moved.append(aside)
    return moved


def begin(attempt, stage):
    """An attempt begins to make this stage's result: called before its job is submitted; again is no harm.

    Returns {"goes_on": whether it may go on from what lies there, "aside": [what was renamed]}.
    """
    directory, name = os.path.split(attempt)
    result, anew, moved = begin_one(directory, name, name, stage, ids(stage["inputs"]))
    files.write(os.path.join(attempt, "stage.json"), json.dumps(result))
    made = {directory: result["id"]}
    for other in stage.get("also", ()):
        place = os.path.join(attempt, other["name"])
        # What comes out of this attempt is not there yet, but its id is known.
        inputs = dict(ids(other["inputs"]), **{path: made[path] for path in other["inputs"] if path in made})
        relative = os.path.relpath(place, other["directory"])
        result, _, aside = begin_one(other["directory"], relative, name, other, inputs)
        files.write(os.path.join(place, "stage.json"), json.dumps(result))
        made[other["directory"]] = result["id"]
        moved += aside
    return {"goes_on": not anew, "aside": moved}


def begin_one(directory, attempt, until, stage, inputs):
    """Begin one stage; (what its done.json will hold, whether it begins anew, [what was renamed]).

    `attempt`: its directory, seen from the stage's. `until`: what renamed outputs are called after.
    """
    asked = {"fingerprint": stage["fingerprint"], "inputs": inputs}
    force = os.path.join(directory, "force")
    begun = files.read_json(os.path.join(directory, "begun.json")) or {}
    known = dict(begun)
    by = known.pop("attempt", None)
    anew = known != asked or ((stage["force"] or os.path.exists(force)) and by != attempt)
    # From here on there is no result until this attempt has made it.
    remove(os.path.join(directory, "done.json"))
    moved = []
    if anew:
        moved = set_aside(stage, until)
        by = attempt
        files.write(os.path.join(directory, "begun.json"), json.dumps(dict(asked, attempt=by)))
    remove(force)
    return dict(asked, id="%s by %s" % (stage["fingerprint"][:12], by), attempt=attempt), anew, moved


def remove(path):
    """Delete a file that may not be there."""
    if os.path.exists(path):
        os.unlink(path)


def main(request):
    """Entry point (boot.py)."""
    return {"done": finished(request["directory"], request["stage"])}
