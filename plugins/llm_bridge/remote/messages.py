"""Define the requests to the helpers on the login node, and their answers.

Each helper of ``remote/login`` takes one of these requests and returns one of these answers. They are sent as JSON
objects (:func:`encode`, :func:`decode`). This module also runs on the login node: Python 3.6 syntax, standard library
only, and types from ``typing``, because 3.6 evaluates annotations and supports neither ``list[str]`` nor ``X | Y``.
"""

from typing import Any, Dict, NamedTuple, Optional, Sequence

from llm_bridge.remote.attempt_dir import Outcome, Started


class RateBudget(NamedTuple):
    """Rate limit of the site for Slurm commands: a token bucket in a file that all processes share.

    Attributes:
        path: The file, on the login node.
        burst: Size of the bucket, in commands.
        per_minute: Commands per minute that the bucket gains.
    """

    path: str
    burst: int
    per_minute: float


class StageRequest(NamedTuple):
    """Stage whose result is looked up or produced.

    Attributes:
        fingerprint: Hash of what decides the result.
        inputs: Directories of the stages whose results this one takes.
        outputs: Paths that only this stage writes.
        shared: Paths that several runs use.
        force: Produce the result again although it exists.
        name: For an item of ``also``: its folder in the attempt's directory.
        directory: For an item of ``also``: its stage's directory.
        also: Further stages whose results the same attempt produces, in order; each may take the results before it.
    """

    fingerprint: str
    inputs: Sequence[str] = ()
    outputs: Sequence[str] = ()
    shared: Sequence[str] = ()
    force: bool = False
    name: str = ""
    directory: str = ""
    also: Sequence["StageRequest"] = ()


class FoundResult(NamedTuple):
    """Existing result of a stage, and the attempt that produced it.

    Attributes:
        job_id: The attempt's Slurm job; None if it is not recorded.
        directory: The attempt's directory.
        started: Its STARTED file, if any.
        outcome: Its OUTCOME file, if any.
        result: JSON content of its RESULT file, if any.
    """

    job_id: Optional[str]
    directory: str
    started: Optional[Started] = None
    outcome: Optional[Outcome] = None
    result: Any = None


# ---- submit

# Status of a submission.
SUBMITTED = "submitted"
FOUND = "found"  # the attempt already has a job
REUSED = "reused"  # the stage's result exists: nothing to submit
STILL_RUNS = "still runs"  # the processes of an earlier attempt run although Slurm considers its job ended: ``message``
CLOSED = "closed"  # a later try, or a teardown, has closed the attempt
PLACED = "placed"  # files were written; the request had no job to submit
FITS = "fits"  # sbatch would accept the job; nothing was written
REFUSED = "refused"  # sbatch failed: ``message`` is its error output
NO_ANSWER = (
    "no answer"  # Slurm did not answer, so whether the job exists is unknown: ``message`` is the cause
)
UNREAD = "unread"  # sbatch succeeded, but the job's id could not be determined: ``message`` quotes its output


class SubmitRequest(NamedTuple):
    """Submission of one batch job, exactly once; without a ``key``, files are written and nothing is submitted.

    Attributes:
        directory: The attempt's directory, absolute.
        key: The job's name in Slurm.
        files: Path below ``directory`` -> text.
        binaries: Path below ``directory`` -> content in base64.
        secrets: File name -> text.
        owner: dag_id, run_id, task_id and map_index of the job's task.
        version: llm-bridge's version.
        stage: The stage that the job produces, if any.
        replaces: Attempt directories in other stage directories whose jobs have ended, and which this job replaces as
            it replaces the earlier attempts of its own stage directory.
        budget: The site's rate limit, if it has one.
        test_only: Run ``sbatch --test-only`` for the same job and write nothing.
    """

    directory: str
    key: Optional[str] = None
    files: Dict[str, str] = {}
    binaries: Dict[str, str] = {}
    secrets: Dict[str, str] = {}
    owner: Dict[str, Any] = {}
    version: str = ""
    stage: Optional[StageRequest] = None
    replaces: Sequence[str] = ()
    budget: Optional[RateBudget] = None
    test_only: bool = False


class SubmitAnswer(NamedTuple):
    """Outcome of a submission.

    Attributes:
        status: One of the statuses above.
        job_id: Of the attempt's job, after SUBMITTED and FOUND.
        archived: New names of earlier attempts' outputs that were renamed.
        result: The stage's existing result, after REUSED.
        message: Output of sbatch or squeue, or the cause of STILL_RUNS.
        starts_in: After FITS, seconds from now to Slurm's estimate of the start; None where its output has none.
    """

    status: str
    job_id: str = ""
    archived: Sequence[str] = ()
    result: Optional[FoundResult] = None
    message: str = ""
    starts_in: Optional[float] = None


# ---- stage_result


class ResultRequest(NamedTuple):
    """Look-up of a stage's result in the stage's ``directory``."""

    directory: str
    stage: StageRequest


class ResultAnswer(NamedTuple):
    """The result, if it exists with the same fingerprint and inputs as requested."""

    found: Optional[FoundResult] = None


# ---- list_attempts


class AttemptsRequest(NamedTuple):
    """Request for the jobs of all attempts of a stage.

    Attributes:
        directory: The stage's directory.
        close: Also close the attempts: none of them can get a job afterwards.
        budget: The site's rate limit, if it has one.
    """

    directory: str
    close: bool = False
    budget: Optional[RateBudget] = None


class AttemptJob(NamedTuple):
    """Slurm job of an attempt, and the attempt's directory."""

    job_id: str
    directory: str


class AttemptsAnswer(NamedTuple):
    """The attempts that have a job, oldest first; or ``error`` if slurmctld did not answer."""

    jobs: Sequence[AttemptJob] = ()
    error: str = ""


# ---- active_jobs


class ActiveRequest(NamedTuple):
    """Request for llm-bridge's pending and running jobs.

    Attributes:
        workspace: Only jobs with a directory below this one.
        mark: Attempt directories of orphans: jobs that were seen without a DAG run.
        budget: The site's rate limit, if it has one.
    """

    workspace: str
    mark: Sequence[str] = ()
    budget: Optional[RateBudget] = None


class ActiveJob(NamedTuple):
    """Pending or running job of llm-bridge.

    Attributes:
        job_id: Its id.
        state: Its state, as squeue prints it.
        directory: Its attempt's directory.
        owner: Content of the attempt's OWNER file.
        orphan_seen_s: Seconds since it was marked as an orphan; None if it was not.
    """

    job_id: str
    state: str
    directory: str
    owner: Dict[str, Any]
    orphan_seen_s: Optional[float] = None


class ActiveAnswer(NamedTuple):
    """The jobs; or ``error`` if slurmctld did not answer."""

    jobs: Sequence[ActiveJob] = ()
    error: str = ""


# ---- poll_jobs


class LogQuery(NamedTuple):
    """Part of a log to read.

    Attributes:
        offset: Byte at which to start.
        max_bytes: Maximum bytes to return.
        max_backlog: Maximum unread bytes; if there are more, reading continues near the end of the log.
        final: The job has ended: also return a last line without a line end.
    """

    offset: int
    max_bytes: int
    max_backlog: int
    final: bool = False


class JobQuery(NamedTuple):
    """Query about one job.

    Attributes:
        id: Key of the answer.
        directory: The attempt's directory.
        files: Names of small JSON files, which may not exist yet.
        log: Part of the output to read; None for none.
        lease: The follower's lease on the output, kept beside the log; None without one.
        acquire: The lease replaces that of another follower.
        over: The job has ended for good: remove its secrets.
        measures: Files with measures (METRICS, GPU_USE) -> offset in bytes from which to read, 0 for those not in here;
            None to read none.
    """

    id: str
    directory: str
    files: Sequence[str] = ()
    log: Optional[LogQuery] = None
    lease: Optional[Dict[str, Any]] = None
    acquire: bool = False
    over: bool = False
    measures: Optional[Dict[str, int]] = None


class Measures(NamedTuple):
    """New whole lines of a file with measures.

    Attributes:
        text: The lines.
        end: Offset after them, in bytes.
    """

    text: str
    end: int


class PollRequest(NamedTuple):
    """Poll of several jobs."""

    jobs: Sequence[JobQuery]


class JobNews(NamedTuple):
    """Answer to a :class:`JobQuery`.

    Attributes:
        id: The query's.
        files: File name -> JSON content; None for a file that does not exist.
        log: Whole lines of the output, in base64.
        offset: Byte of the output at which ``log`` starts.
        skipped: Number of bytes before ``log`` that were left out because the backlog was too large.
        more: More output can be read.
        size: The output's size in bytes; None if the query did not ask for output.
        current_lease: The lease that was beside the log before this query.
        lease_lost: Another follower has acquired the lease.
        measures: File -> :class:`Measures`, as a list of its fields, of the files that have grown.
        more_measures: More can be read of them.
    """

    id: str
    files: Dict[str, Any]
    log: str = ""
    offset: int = 0
    skipped: int = 0
    more: bool = False
    size: Optional[int] = None
    current_lease: Optional[Dict[str, Any]] = None
    lease_lost: bool = False
    measures: Dict[str, Any] = {}
    more_measures: bool = False


class PollAnswer(NamedTuple):
    """Answers to all queries of a :class:`PollRequest`."""

    jobs: Sequence[JobNews]


# ---- slurm_command


class CommandRequest(NamedTuple):
    """Slurm command to run within the rate limit.

    Attributes:
        argv: The command.
        stdin: Its standard input.
        budget: The rate limit.
        reserve: Number of commands of the rate limit to leave to other callers.
    """

    argv: Sequence[str]
    stdin: str
    budget: RateBudget
    reserve: int = 0


class CommandAnswer(NamedTuple):
    """Exit code and output of a command; or ``wait_seconds`` until the rate limit allows it."""

    code: int = 0
    stdout: str = ""
    stderr: str = ""
    wait_seconds: Optional[float] = None


# ---- serve

# Maximum number of calls that one process on the login node works on at the same time.
SERVED_AT_ONCE = 16


class HelperCall(NamedTuple):
    """Call of a helper.

    Attributes:
        id: Number of the call, from 1 on.
        helper: Name of the helper.
        request: Its request, as JSON values.
        modules: Dotted name -> source of the modules that it needs and that no earlier call had, in the order in which
            they are loaded.
    """

    id: int
    helper: str
    request: Any
    modules: Dict[str, str] = {}


class HelperAnswer(NamedTuple):
    """Answer to a :class:`HelperCall`.

    Attributes:
        id: The call's; 0 for the first answer, which says that calls are taken.
        answer: The helper's answer, as JSON values.
        error: Traceback of a helper that failed; empty otherwise.
    """

    id: int
    answer: Any = None
    error: str = ""


# ---- ray_request


class RayHttpRequest(NamedTuple):
    """HTTP request to the dashboard of the Ray cluster in an attempt directory.

    Attributes:
        directory: The Ray cluster's attempt directory.
        method: HTTP method.
        path: Path of the URL.
        body: JSON values, or None.
        timeout_seconds: Maximum seconds to wait for the answer.
    """

    directory: str
    method: str
    path: str
    body: Any
    timeout_seconds: float


class RayHttpAnswer(NamedTuple):
    """HTTP status and body; or the reason why the dashboard is unreachable."""

    status: int = 0
    text: str = ""
    unreachable: str = ""


# ---- check_site


class HubAccess(NamedTuple):
    """A Hub, and the token for it, which is sent only as a header.

    Attributes:
        endpoint: The Hub's URL.
        token: The token; empty if it is in ``token_file``.
        repo_id: Repository that the token must be allowed to write to; empty for none.
        token_file: File on the cluster that holds the token; "~" is expanded there.
        source: Where the token is set, for messages.
    """

    endpoint: str
    token: str
    repo_id: str = ""
    token_file: str = ""
    source: str = "the token's connection"


class CheckRequest(NamedTuple):
    """Checks to make before anything is submitted.

    Attributes:
        workspace: Directory that must be writable; it is created if it is missing.
        readable: Path that must be readable -> key and file that set it.
        hub: Hub that must accept the token; None to skip this check.
        workspace_setting: Key and file that set the workspace.
        min_free_gib: Free space in GiB below which the workspace gets a warning.
        quota: Also run the commands that print a quota.
        environment: Path of the jobs' environment, to name what it was built from; empty for none.
    """

    workspace: str
    readable: Dict[str, str]
    hub: Optional[HubAccess] = None
    workspace_setting: str = "workspace"
    min_free_gib: float = 0
    quota: bool = False
    environment: str = ""


# Results of a check: an error stops a run, a warning does not.
OK, WARNING, ERROR, SKIPPED = "ok", "warning", "error", "skipped"


class Finding(NamedTuple):
    """Result of one check of a site.

    Attributes:
        check: Name of the check, such as "partition".
        result: OK, WARNING, ERROR or SKIPPED.
        detail: The finding, as a clause that names file and key where one is wrong.
        action: What to do, as a clause that begins with a verb; empty where there is nothing to do.
    """

    check: str
    result: str
    detail: str
    action: str = ""

    @property
    def sentence(self) -> str:
        """Detail and action as one text."""
        detail = self.detail.rstrip(".")
        return detail + ". " + self.action[0].upper() + self.action[1:] if self.action else detail


class CheckAnswer(NamedTuple):
    """Findings of ``check_site``, in the order of the checks."""

    findings: Sequence[Finding] = ()


# ---- describe_site


class DescribeRequest(NamedTuple):
    """Question for what a login node has.

    Attributes:
        folders: Candidates for a workspace; variables and "~" are expanded on the login node.
        files: Candidates for files of settings, with wildcards.
    """

    folders: Sequence[str] = ()
    files: Sequence[str] = ()


class Folder(NamedTuple):
    """Folder that the user may write.

    Attributes:
        path: Its path.
        free_gib: Free space of its file system.
        kind: Type of the file system, such as "lustre"; empty if it is unknown.
    """

    path: str
    free_gib: float
    kind: str


class DescribeAnswer(NamedTuple):
    """Description of a login node.

    Attributes:
        user: Name of the user.
        shell: The user's login shell.
        cleared: Names of the variables that llm-bridge removes, because they would steer Slurm's commands.
        folders: Those of the request that exist and may be written.
        files: Those of the request that exist.
        interfaces: Network interfaces, without the loopback and those of containers.
    """

    user: str
    shell: str
    cleared: Sequence[str] = ()
    folders: Sequence[Folder] = ()
    files: Sequence[str] = ()
    interfaces: Sequence[str] = ()


# ---- start_from


class StartRequest(NamedTuple):
    """Look-up of what a run starts from.

    Attributes:
        setting: The field that set it, for messages.
        stage: The first stage that runs.
        path: Directory of a run, a model or, in front of the stage ``merge``, of checkpoints.
        is_run: The path is that of a run.
    """

    setting: str
    stage: str
    path: str
    is_run: bool = False


class StartAnswer(NamedTuple):
    """Complete results and files at the path of a StartRequest.

    Attributes:
        problems: Sentences about what is missing or incomplete.
        id: Identity of the files of a model or of checkpoints.
        results: Of a run: stage -> id of its finished result.
        base_model: Of a run: directory of the model that its SFT was trained from; empty if unknown.
        ppo_from: Of a run: directory of the model that its RL was trained from; empty if unknown.
    """

    problems: Sequence[str] = ()
    id: str = ""
    results: Dict[str, str] = {}
    base_model: str = ""
    ppo_from: str = ""


# ---- old_runs


class OldRunsRequest(NamedTuple):
    """List of the runs of a DAG, or removal of some.

    Attributes:
        workspace: The cluster's workspace.
        directory: ``WORKSPACE/DAG``.
        seconds: Maximum time.
        remove: Names of the runs to remove, besides what earlier requests have left; None lists the runs.
    """

    workspace: str
    directory: str
    seconds: float
    remove: Optional[Sequence[str]] = None


class RunFolder(NamedTuple):
    """Directory of a run.

    Attributes:
        name: Its name.
        dag_id: DAG of the run, as its jobs recorded it.
        run_id: The run.
        newest: Epoch seconds of the newest attempt's last change.
        trained: A training stage has a result.
        is_active: A job of it runs.
        is_used: Another run has started from its results.
    """

    name: str
    dag_id: str
    run_id: str
    newest: float
    trained: bool
    is_active: bool = False
    is_used: bool = False


class OldRunsAnswer(NamedTuple):
    """The runs, or what was removed.

    Attributes:
        runs: The runs, in no order.
        removed: Names of the runs whose directories no longer exist under their names.
        freed: Bytes of the files that were deleted.
        more: Files of removed runs are left: ask again with ``remove``.
        problems: Sentences about what could not be done.
    """

    runs: Sequence[RunFolder] = ()
    removed: Sequence[str] = ()
    freed: int = 0
    more: bool = False
    problems: Sequence[str] = ()


# ---- evidence


class SignatureQuery(NamedTuple):
    """A signature to search for.

    Attributes:
        id: Its id.
        seen: Regular expression of a line.
        words: Texts, at least one of which is in each matching line; None if there are none.
        of_speaker: The node that prints the line is the one that the line is about.
    """

    id: str
    seen: str
    words: Optional[Sequence[str]] = None
    of_speaker: bool = False


class EvidenceRequest(NamedTuple):
    """Collect evidence of a job's failure.

    Attributes:
        directory: The attempt's directory.
        logs: Paths or patterns of logs, those with the most direct evidence first.
        signatures: Signatures to search for.
        checkpoints: Directory of verl's checkpoints; None if the attempt writes none.
        addresses: ``cluster.json`` of the Ray cluster on which the attempt ran; None for a Slurm job.
        max_bytes: Maximum bytes to read of one log.
        seconds: Maximum time for all logs.
        uids: User ids to resolve to names.
    """

    directory: str
    logs: Sequence[str]
    signatures: Sequence[SignatureQuery]
    max_bytes: int
    seconds: float
    checkpoints: Optional[str] = None
    addresses: Optional[str] = None
    uids: Sequence[str] = ()


class LogMatch(NamedTuple):
    """First match of a signature in a log.

    Attributes:
        id: Id of the signature.
        file: Path of the log.
        text: The line without its prefix, and without what looks like a token.
        line: Line number from 1 on; None after a gap.
        node: Node at fault; None if unknown.
        order: Index of the log in the request.
    """

    id: str
    file: str
    text: str
    line: Optional[int] = None
    node: Optional[str] = None
    order: int = 0


class SavedStep(NamedTuple):
    """A complete checkpoint.

    Attributes:
        step: Its training step.
        at: Time at which it was completed, in epoch seconds.
    """

    step: int
    at: float


class EvidenceAnswer(NamedTuple):
    """Evidence of a job's failure; times are epoch seconds, None where unknown.

    Attributes:
        found: Matches.
        unread: Number of bytes of logs that were not read.
        last_line: Last line of the first log that is not empty.
        newest: Newest complete checkpoint.
        newest_before: Newest checkpoint that was complete when the attempt was submitted.
        submitted: Submission of the attempt.
        started: Current start of its job.
        ended: End of its job.
        free_bytes: Free bytes of the file system of the attempt's directory.
        total_bytes: Size of that file system.
        full: Error of a small write into the attempt's directory; empty if there is space.
        users: Names of the requested user ids that have one.
    """

    found: Sequence[LogMatch] = ()
    unread: int = 0
    last_line: str = ""
    newest: Optional[SavedStep] = None
    newest_before: Optional[SavedStep] = None
    submitted: Optional[float] = None
    started: Optional[float] = None
    ended: Optional[float] = None
    free_bytes: Optional[int] = None
    total_bytes: Optional[int] = None
    full: str = ""
    users: Dict[str, str] = {}


# Fields that hold a message, or a list of messages.
_NESTED: Dict[Any, Dict[str, Any]] = {
    FoundResult: {"started": Started, "outcome": Outcome},
    StageRequest: {"also": StageRequest},
    SubmitRequest: {"stage": StageRequest, "budget": RateBudget},
    SubmitAnswer: {"result": FoundResult},
    ResultRequest: {"stage": StageRequest},
    ResultAnswer: {"found": FoundResult},
    AttemptsRequest: {"budget": RateBudget},
    AttemptsAnswer: {"jobs": AttemptJob},
    ActiveRequest: {"budget": RateBudget},
    ActiveAnswer: {"jobs": ActiveJob},
    JobQuery: {"log": LogQuery},
    PollRequest: {"jobs": JobQuery},
    PollAnswer: {"jobs": JobNews},
    CommandRequest: {"budget": RateBudget},
    CheckRequest: {"hub": HubAccess},
    CheckAnswer: {"findings": Finding},
    DescribeAnswer: {"folders": Folder},
    OldRunsAnswer: {"runs": RunFolder},
    EvidenceRequest: {"signatures": SignatureQuery},
    EvidenceAnswer: {"found": LogMatch, "newest": SavedStep, "newest_before": SavedStep},
}


def encode(value: Any) -> Any:
    """Return a message, and the messages in it, as JSON values."""
    if hasattr(value, "_asdict"):
        return {name: encode(inner) for name, inner in value._asdict().items()}
    if isinstance(value, (list, tuple)):
        return [encode(inner) for inner in value]
    if isinstance(value, dict):
        return {name: encode(inner) for name, inner in value.items()}
    return value


def decode(kind: Any, values: Dict[str, Any]) -> Any:
    """Return a JSON object as a message.

    Args:
        kind: Class of the message.
        values: Its fields. Fields that ``kind`` does not have are dropped.

    Raises:
        TypeError: A field without a default is missing.
    """
    nested = _NESTED.get(kind, {})
    known = {}
    for name, value in values.items():
        inner = nested.get(name)
        if name not in kind._fields:
            continue
        if inner and isinstance(value, dict):
            value = decode(inner, value)
        elif inner and isinstance(value, list):
            value = [decode(inner, each) for each in value]
        known[name] = value
    return kind(**known)
