"""List the runs of a DAG on the cluster, and remove directories of old ones.

Takes an OldRunsRequest and returns an OldRunsAnswer (``remote/messages.py``). A directory is renamed first, so that no
run has half of its files; what could not be deleted in time is deleted by the next request. Only directories of runs
that llm-bridge submitted are touched, directly below ``WORKSPACE/DAG``, and none from which another run has started.
"""

import os
import time
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Set

from llm_bridge.remote import attempt_dir
from llm_bridge.remote.attempt_dir import Owner, Provenance
from llm_bridge.remote.messages import OldRunsAnswer, OldRunsRequest, RunFolder, decode, encode

# Prefix of the name of a run that is being deleted.
REMOVED = ".removed-"
# Stages whose result means that a run has trained.
TRAINED = ("sft", "ppo", "merge")
# A job of a run is taken to be active while its heartbeat is younger.
ACTIVE_SECONDS = 10 * 60


class TooSlow(Exception):
    """The time of the request is over."""


class Deadline(NamedTuple):
    """End of the time of a request, on the monotonic clock."""

    end: float

    def check(self) -> None:
        """Raise TooSlow after the end."""
        if time.monotonic() > self.end:
            raise TooSlow


def folders(path: str) -> List[str]:
    """Return the directories in a directory, without links and hidden ones, by name."""
    try:
        with os.scandir(path) as entries:
            found = [
                e.path for e in entries if not e.name.startswith(".") and e.is_dir(follow_symlinks=False)
            ]
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []
    return sorted(found)


def attempts(run: str) -> Iterator[str]:
    """Yield the attempt directories of a run, those of Ray jobs and of stages within stages included."""
    for stage in folders(run):
        for place in [stage, *folders(stage)]:
            for path in [place] if attempt_dir.attempt_number(place) else folders(place):
                if attempt_dir.attempt_number(path):
                    yield path


def describe(run: str) -> Optional[RunFolder]:
    """Return a run; None for a directory that no job of llm-bridge has."""
    owner, newest, is_active = None, 0.0, False
    for attempt in set(attempts(run)):
        owner = owner or attempt_dir.read_shape(Owner, attempt, attempt_dir.OWNER)
        newest = max(newest, os.stat(attempt).st_mtime)
        beats = attempt_dir.heartbeats(attempt).values()
        is_active = is_active or any(time.time() - beat < ACTIVE_SECONDS for beat in beats)
    if owner is None:
        return None
    results = [os.path.join(run, stage, attempt_dir.STAGE_RESULT) for stage in TRAINED]
    trained = any(os.path.exists(path) for path in results)
    return RunFolder(os.path.basename(run), owner.dag_id, owner.run_id, newest, trained, is_active)


def started_from(workspace: str, deadline: Deadline) -> Set[str]:
    """Return the run directories whose results are inputs of another run's stages, without symbolic links."""
    used = set()
    # A cluster file may have "//" or a link in its path, and a form the same directory by another name.
    workspace = os.path.realpath(workspace)
    for dag in folders(workspace):
        for run in folders(dag):
            deadline.check()
            for stage in folders(run):
                for place in (stage, os.path.join(stage, "merge")):
                    found = attempt_dir.read_shape(Provenance, place, attempt_dir.PROVENANCE)
                    for path in found.inputs if found else ():
                        parts = os.path.relpath(os.path.realpath(path), workspace).split(os.sep)
                        origin = os.path.join(workspace, *parts[:2])
                        if parts[0] != os.pardir and len(parts) > 2 and origin != run:
                            used.add(origin)
    return used


def delete(path: str, deadline: Deadline, freed: List[int]) -> None:
    """Delete a directory; links are deleted and not followed.

    Args:
        path: The directory.
        deadline: End of the request's time.
        freed: Receives the bytes of each deleted file.

    Raises:
        TooSlow: Some of it is left.
        OSError: Some of it is left, because it cannot be deleted.
    """
    for place, directories, names in os.walk(path, topdown=False):
        for name in directories + names:
            deadline.check()
            full = os.path.join(place, name)
            stat = os.lstat(full)
            if name in directories and not os.path.islink(full):
                os.rmdir(full)
                continue
            os.unlink(full)
            freed.append(stat.st_blocks * 512 if stat.st_nlink == 1 else 0)
    os.rmdir(path)


def put_aside(run: str) -> str:
    """Rename a run, and return its new name."""
    folder, name = os.path.split(run)
    number = 0
    while True:
        target = os.path.join(folder, "%s%s-%d" % (REMOVED, name, number))
        if not os.path.lexists(target):
            os.rename(run, target)
            return target
        number += 1


def remove(asked: OldRunsRequest, deadline: Deadline) -> OldRunsAnswer:
    """Remove the runs that are named, and what earlier requests have left."""
    removed, problems = [], []  # type: List[str], List[str]
    freed, more = [], False  # type: List[int], bool
    used = started_from(asked.workspace, deadline)
    for name in asked.remove or ():
        run = os.path.join(asked.directory, name)
        found = describe(run) if os.path.isdir(run) and not os.path.islink(run) else None
        if "/" in name or name.startswith(".") or not found:
            continue
        if found.is_active or os.path.realpath(run) in used:
            problems.append("%s: %s" % (name, "a job is active" if found.is_active else "in use"))
            continue
        try:
            put_aside(run)
            removed.append(name)
        except OSError as error:
            problems.append("%s cannot be renamed: %s" % (run, error.strerror))
    for name in sorted(os.listdir(asked.directory)):
        path = os.path.join(asked.directory, name)
        if not name.startswith(REMOVED) or os.path.islink(path):
            continue
        try:
            delete(path, deadline, freed)
        except TooSlow:
            more = True
            break
        except OSError as error:
            problems.append("%s cannot be deleted: %s" % (error.filename, error.strerror))
    return OldRunsAnswer(removed=removed, freed=sum(freed), more=more, problems=problems)


def main(request: Dict[str, Any]) -> Any:
    """List the runs, or remove those that the request names."""
    asked = decode(OldRunsRequest, request)
    directory = os.path.realpath(asked.directory)
    if os.path.dirname(directory) != os.path.realpath(asked.workspace) or not os.path.isdir(directory):
        return encode(OldRunsAnswer(problems=["%s is no directory of runs" % asked.directory]))
    deadline = Deadline(time.monotonic() + asked.seconds)
    try:
        if asked.remove is not None:
            return encode(remove(asked, deadline))
        used = started_from(asked.workspace, deadline)
        found = [describe(run) for run in folders(asked.directory)]
    except TooSlow:
        return encode(OldRunsAnswer(problems=["listing the runs takes more than %d s" % asked.seconds]))
    runs = [run._replace(is_used=os.path.join(directory, run.name) in used) for run in found if run]
    left = any(name.startswith(REMOVED) for name in os.listdir(asked.directory))
    return encode(OldRunsAnswer(runs=runs, more=left))
