"""Find the existing result of a stage, and decide whether a new attempt resumes from earlier outputs.

Takes a ResultRequest and returns a ResultAnswer (``remote/messages.py``). The state of a stage is in three files of its
directory (``remote/attempt_dir.py``): STAGE_RESULT, PROVENANCE and FORCE_RERUN.

The id of a result names the attempt that began it: a result that was produced again has a new id, so the stages that
take it as input run again.
"""

import os
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

from llm_bridge.remote import attempt_dir
from llm_bridge.remote.attempt_dir import Outcome, Provenance, StageResult, Started
from llm_bridge.remote.messages import (
    FoundResult,
    ResultAnswer,
    ResultRequest,
    StageRequest,
    decode,
    encode,
)


def same_inputs(first: Dict[str, Optional[str]], second: Dict[str, Optional[str]]) -> bool:
    """Return True if the results of two attempts' inputs are the same.

    An input without a result is like none: data that an earlier version prepared have no result, and attempts of that
    version did not name them as an input.
    """
    existing = [{path: name for path, name in inputs.items() if name} for inputs in (first, second)]
    return existing[0] == existing[1]


class StageStart(NamedTuple):
    """Start of an attempt on a stage.

    Attributes:
        result: The stage's result once the attempt has succeeded.
        from_zero: The attempt does not resume from earlier outputs.
        archived: New names of earlier outputs that were renamed.
    """

    result: StageResult
    from_zero: bool
    archived: Sequence[str]


def result_ids(inputs: Sequence[str]) -> Dict[str, Optional[str]]:
    """Return the id of each input's result; None for one without a result.

    Args:
        inputs: Directories of stages, or of prepared data: the id of their result is a hash of the rows.
    """
    found: Dict[str, Optional[str]] = {}
    for path in inputs:
        result = attempt_dir.read_shape(StageResult, path, attempt_dir.STAGE_RESULT)
        found[path] = result.id if result else None
    return found


def find(directory: str, stage: StageRequest) -> Optional[FoundResult]:
    """Return the stage's result if it has the same fingerprint and inputs and its outputs exist; otherwise None.

    Args:
        directory: The stage's directory.
        stage: The stage.
    """
    result = attempt_dir.read_shape(StageResult, directory, attempt_dir.STAGE_RESULT)
    forced = stage.force or os.path.exists(os.path.join(directory, attempt_dir.FORCE_RERUN))
    if not result or forced:
        return None
    if result.fingerprint != stage.fingerprint or not same_inputs(result.inputs, result_ids(stage.inputs)):
        return None
    if not all(os.path.exists(path) for path in [*stage.outputs, *stage.shared]):
        return None
    attempt = os.path.join(directory, result.attempt)
    return FoundResult(
        job_id=attempt_dir.job_of(attempt),
        directory=attempt,
        started=attempt_dir.read_shape(Started, attempt, attempt_dir.STARTED),
        outcome=attempt_dir.read_shape(Outcome, attempt, attempt_dir.OUTCOME),
        result=attempt_dir.read_json(os.path.join(attempt, attempt_dir.RESULT)),
    )


def start(attempt: str, stage: StageRequest) -> List[str]:
    """Prepare a stage, and those in its ``also``, for an attempt, before its job is submitted. Idempotent.

    Args:
        attempt: The attempt's directory.
        stage: The stage.

    Returns:
        New names of earlier outputs that were renamed.
    """
    directory, name = os.path.split(attempt)
    first = start_stage(directory, name, name, stage, result_ids(stage.inputs))
    attempt_dir.write_json(os.path.join(attempt, attempt_dir.STAGE_MANIFEST), first.result)
    made = {directory: first.result.id}
    archived = list(first.archived)
    for other in stage.also:
        place = os.path.join(attempt, other.name)
        # The results of this attempt do not exist yet, but their ids are known.
        inputs = dict(result_ids(other.inputs), **{path: made[path] for path in other.inputs if path in made})
        relative = os.path.relpath(place, other.directory)
        further = start_stage(other.directory, relative, name, other, inputs)
        attempt_dir.write_json(os.path.join(place, attempt_dir.STAGE_MANIFEST), further.result)
        made[other.directory] = further.result.id
        archived += further.archived
    return archived


def start_stage(
    directory: str, attempt: str, archive_name: str, stage: StageRequest, inputs: Dict[str, Optional[str]]
) -> StageStart:
    """Prepare one stage for an attempt.

    Args:
        directory: The stage's directory.
        attempt: The attempt's directory, relative to the stage's.
        archive_name: Suffix in the names of archived outputs.
        stage: The stage.
        inputs: Directory of an input stage -> id of its result.
    """
    force = os.path.join(directory, attempt_dir.FORCE_RERUN)
    known = attempt_dir.read_shape(Provenance, directory, attempt_dir.PROVENANCE)
    same = known is not None and known.fingerprint == stage.fingerprint and same_inputs(known.inputs, inputs)
    made_by = known.attempt if known else None
    from_zero = not same or ((stage.force or os.path.exists(force)) and made_by != attempt)
    # From here on the stage has no result until this attempt has succeeded.
    attempt_dir.remove(os.path.join(directory, attempt_dir.STAGE_RESULT))
    moved: List[str] = []
    if from_zero:
        moved = archive(stage, archive_name)
        made_by = attempt
        provenance = Provenance(stage.fingerprint, inputs, attempt)
        attempt_dir.write_json(os.path.join(directory, attempt_dir.PROVENANCE), provenance)
    attempt_dir.remove(force)
    name = "%s by %s" % (stage.fingerprint[:12], made_by)
    return StageStart(StageResult(stage.fingerprint, inputs, name, attempt), from_zero, moved)


def archive(stage: StageRequest, attempt: str) -> List[str]:
    """Rename the outputs of an earlier attempt, which are never deleted and never resumed from.

    Args:
        stage: The stage.
        attempt: Name of the attempt that starts from zero.

    Returns:
        The new names.
    """
    moved = []
    for path in stage.outputs:
        target = attempt_dir.archived(path, attempt)
        if os.path.exists(path) and not os.path.exists(target):
            os.rename(path, target)
            moved.append(target)
    return moved


def main(request: Dict[str, Any]) -> Any:
    """Look up the stage's result."""
    asked = decode(ResultRequest, request)
    return encode(ResultAnswer(find(asked.directory, asked.stage)))
