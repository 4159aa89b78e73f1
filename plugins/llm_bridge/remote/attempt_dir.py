"""Name every file of a stage and of an attempt on the cluster, and read and write them atomically.

Airflow's side, the helpers on the login node, the batch script and the programs on the nodes communicate through these
files. All of them take file names, shapes and the functions that write from this module; templates get it as ``files``.
``docs/attempt-directory.md`` lists writer, time and readers of each file.

A stage owns ``WORKSPACE/DAG_ID/RUN_ID/STAGE/``; each submission owns an attempt directory in it.

This module also runs on login nodes (see ``remote/login/boot.py``): Python 3.6 syntax, standard library only.
"""

import errno
import glob
import json
import os
import re
import shutil
import tempfile
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

# ---- a stage's directory

# Prefixes of attempt directories; a number follows. RAY_*: of Ray jobs, which run in the Slurm job of the Ray cluster.
ATTEMPT_PREFIX = "attempt-"
RAY_PREFIX = "ray-"
RAY_RESUBMIT_PREFIX = "ray-resubmit-"
# Stage directories of Ray clusters: one that the waiting task starts again, and one that is queued while SFT runs.
RECOVERY = "recovery"
PREQUEUED = "prequeued"
# The stage has a result (StageResult): a copy of the attempt's STAGE_MANIFEST, made by the job when it succeeds.
STAGE_RESULT = "stage_result.json"
# The attempt that began the current outputs, finished or not, and its inputs (Provenance).
PROVENANCE = "provenance.json"
# Output of the stage evaluate: its result, and all answers with their scores.
EVALUATION_ANSWERS = "evaluation.json"
# Folder with the answers of each model that has finished, until the evaluation has: the next attempt uses them.
EVALUATION_FINISHED = "evaluation_finished"
# An empty file that a user creates: the next attempt starts from zero.
FORCE_RERUN = "force_rerun"

# ---- an attempt's directory: written at submission

# Locked while a helper submits or closes the attempt.
LOCK = "submit.lock"
OWNER = "owner.json"
SCRIPT = "script.sh"
USER_SCRIPT = "user_script.sh"
SETTINGS = "settings.json"
# The programs that run on the nodes, as they were when the attempt was submitted.
NODE_ARCHIVE = "node.pyz"
PREFIX_OUTPUT = "prefix_output.sh"
RAY_JOB = "ray_job.sh"
# Ray's id of the job.
RAY_JOB_ID = "ray_job_id"
# Directory with one file of mode 0600 per secret; removed when the job has ended for good.
SECRETS = "secrets"
# Content of STAGE_RESULT once this attempt has succeeded.
STAGE_MANIFEST = "stage_manifest.json"
# The id of the attempt's job. The first process to link this file decides: the helper, or the job itself as it starts.
JOB_ID = "job_id"
# The second file decides if the first one holds no id: a node that crashed right after the link may have lost the
# content, or a line that an sbatch wrapper prints was written into it.
JOB_ID_CLAIMS = (JOB_ID, "job_id.again")
# On a file system without hard links: folder beside a claim, with the id in its file JOB_ID. A folder cannot be renamed
# to one that is not empty, so the first process decides here, too; the claim is then a copy of that file.
CLAIM_FOLDER_SUFFIX = ".claimed"
# This attempt may not get a job any more, and a job of it that starts ends at once.
CLOSED = "attempt_closed"

# ---- an attempt's directory: written by the job

OUTPUT = "output.log"
# Prefix of a file that a run of the batch script touches every few seconds until it ends; the run's id follows. A run
# that is killed leaves it. Slurm ends a job whose node does not answer, and forgets jobs in a crash, although the
# processes may run on: they have ended only once the time of this file no longer changes.
HEARTBEAT = "heartbeat."
HEARTBEAT_SECONDS = 5
# Time for which a heartbeat must not change before its run counts as ended.
HEARTBEAT_SAMPLE_SECONDS = 15
# The id of the last run of the batch script that has started: a job that Slurm runs again has several.
CURRENT_RUN = "current_run"
STARTED = "started.json"
OUTCOME = "outcome.json"
RESULT = "result.json"
REASON = "reason.json"
# Epoch seconds at which Slurm will end the job; written when Slurm signals the job before its time limit.
DEADLINE = "deadline"
PREFLIGHT = "preflight"
HYDRA = "hydra"
# Metrics of a training, a JSON object a line: {"step", "time", "data": {name: value}}.
METRICS = "metrics.jsonl"
# Folder of the tuner: its own output, what it has measured, and why a process ended (the process's number follows).
# TUNED, in a training's checkpoints: verl's settings that it chose for this training, also for attempts that resume it.
TUNING = "tuning_files"
TUNING_STATE = "state.json"
TUNING_FAILURE = "failure-"
TUNED = "tuned.json"
# Folder with the use of each node's GPUs, NODE.jsonl, a JSON object a line: {"time", "gpus": [GpuUse]}.
GPU_USE = "gpu_use"
LINES_SUFFIX = ".jsonl"
# The W&B run that the attempt logs to: {"id", "url"}, and the folder in which W&B and TensorBoard keep their files.
WANDB_RUN = "wandb_run.json"
TRACKER_FILES = "tracker_files"
# Folder of PPO's reward: its settings, the user's files; of its trial the rows, each call and the end of the output.
REWARDS = "reward_files"
REWARD = "reward.json"
REWARD_TRIAL = "trial.json"
REWARD_CALLS = "trial_calls.jsonl"
REWARD_OUTPUT = "trial.log"
# Folder of the evaluation: the prompts for each model, and its answers.
EVALUATION = "evaluation_files"
# Files of a Ray cluster: its addresses once it is ready, its token (mode 0600), the nodes' reports, and Ray's own logs.
CLUSTER = "cluster.json"
RAY_TOKEN = "ray_token"
RAY_NODES = "ray_nodes"
RAY_LOGS = "ray_logs"
# Result of SFT in a job that starts a Ray cluster afterwards (allocation: shared).
SFT_DONE = "sft_done.json"

# Process id of a build on the login node (templates/environment.sh.j2).
BUILD_PID = "build_pid"

# ---- an environment's directory

# Record of an environment that install-environment has built, written last: {"hash", "python", "tool", "built"}.
ENVIRONMENT = "llm-bridge-environment.json"

# ---- an attempt's directory: written by Airflow's side while it follows the job

# The reap_orphans DAG has seen this job without a DAG run.
ORPHAN_SEEN = "orphan_seen"

# Errors of a workspace that is full, over its quota, or read-only.
NOT_WRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)

JSON_SUFFIX = ".json"
# A job id alone on its line, as `sbatch --parsable` prints it: "12" or, on a federation, "12;cluster".
_JOB_ID_LINE = re.compile(r"^[ \t]*([1-9][0-9]{0,9})(?:;\S+)?[ \t\r]*$", re.MULTILINE)
# Slurm's commands refuse a larger number, and with it all other ids of the same call.
MAX_JOB_ID = 2**31 - 1
_NUMBER = re.compile(r"\A(?:%s|%s|%s)(\d+)\Z" % (ATTEMPT_PREFIX, RAY_PREFIX, RAY_RESUBMIT_PREFIX))


def environment_record(environment: str) -> str:
    """Return the path of the record of an environment: of a venv in it, of an image (.sif) beside it."""
    if environment.endswith(".sif"):
        return environment + JSON_SUFFIX
    return os.path.join(environment, ENVIRONMENT)


def log_lease(try_id: str) -> str:
    """Name the file with the lease on the output for one try of a task: its follower, and the offset it has reached."""
    return "log_lease.%s.json" % try_id


def notified(occasion: str) -> str:
    """Name the file that records that an alert for ``occasion`` was sent for this attempt."""
    return "notified-%s.json" % occasion


def node_report(node: str) -> str:
    """Name a node's report in RAY_NODES."""
    return node + JSON_SUFFIX


def gpu_use(node: str) -> str:
    """Name the file with the use of a node's GPUs."""
    return "%s/%s%s" % (GPU_USE, node, LINES_SUFFIX)


def attempt_name(number: int) -> str:
    """Name the directory of attempt ``number`` in the stage's directory."""
    return "%s%d" % (ATTEMPT_PREFIX, number)


def attempt_number(path: str) -> int:
    """Return the number at the end of an attempt directory's name; 0 for any other path."""
    found = _NUMBER.match(os.path.basename(path.rstrip("/")))
    return int(found.group(1)) if found else 0


def attempts_in(stage_directory: str) -> List[str]:
    """Return the attempt directories of a stage, oldest first."""
    pattern = os.path.join(glob.escape(stage_directory), ATTEMPT_PREFIX + "*")
    return sorted(glob.glob(pattern), key=attempt_number)


def ray_jobs_in(stage_directory: str) -> List[str]:
    """Return the attempt directories of a stage's Ray jobs, by name: first those of the task that submits the job."""
    return sorted(glob.glob(os.path.join(glob.escape(stage_directory), RAY_PREFIX + "*")))


def job_id_in(text: Optional[str]) -> Optional[str]:
    """Return the last Slurm job id that stands alone on a line of a text; None without one.

    A site's wrapper around sbatch may print other lines.
    """
    found = [number for number in _JOB_ID_LINE.findall(text or "") if int(number) <= MAX_JOB_ID]
    return str(found[-1]) if found else None


def job_of(attempt: str) -> Optional[str]:
    """Return the id of an attempt's Slurm job, or None."""
    for name in JOB_ID_CLAIMS:
        found = job_id_in(read(os.path.join(attempt, name)))
        if found:
            return found
    return None


def heartbeats(attempt: str) -> Dict[str, float]:
    """Return the heartbeat files of an attempt that has no outcome, with their times of modification.

    Opening the file makes NFS fetch the time from its server (nfs(5), close-to-open consistency).
    """
    found = {}
    if not os.path.exists(os.path.join(attempt, OUTCOME)):
        for path in glob.glob(os.path.join(glob.escape(attempt), HEARTBEAT + "*")):
            try:
                with open(path) as file:
                    found[path] = os.fstat(file.fileno()).st_mtime
            except FileNotFoundError:  # the job has just ended
                pass
    return found


def remove_secrets(attempt: str) -> None:
    """Delete the secrets of an attempt whose job has ended for good."""
    shutil.rmtree(os.path.join(attempt, SECRETS), ignore_errors=True)


def archived(path: str, attempt: str) -> str:
    """Return the name that outputs of an earlier attempt get when ``attempt`` starts from zero."""
    return "%s.archived-%s" % (path, attempt)


# ---- shapes of the JSON files


class Owner(NamedTuple):
    """OWNER, written by the submitting helper: the task that the job belongs to.

    Attributes:
        dag_id: The task's DAG.
        run_id: Its run.
        task_id: The task.
        map_index: Its map index.
        key: The job's name in Slurm.
        version: llm-bridge's version at submission: jobs outlive upgrades.
    """

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    key: str
    version: str


class Started(NamedTuple):
    """STARTED, written by the batch script.

    Attributes:
        job_id: The Slurm job's id.
        started: Epoch seconds.
        nodes: Slurm's node list.
        partition: The partition in which it runs, of those that the cluster file names.
    """

    job_id: str
    started: float
    nodes: str
    partition: str = ""


class Outcome(NamedTuple):
    """OUTCOME, written by the batch script or a Ray job's wrapper when it ends.

    Attributes:
        exit_code: Above 128, a signal ended the job, and Slurm may run it again.
        ended: Epoch seconds.
        started: Epoch seconds; only from a Ray job's wrapper.
        restarts: Number of times that Slurm had restarted the job.
    """

    exit_code: int
    ended: float
    started: Optional[float] = None
    restarts: int = 0


class Reason(NamedTuple):
    """REASON: the job's own explanation of its failure.

    Attributes:
        reason: One sentence.
        retry: False if the same job would fail again.
        kind: Failure class (``diagnosis/classes.py``), or a verdict of the Ray cluster's guard.
        nodes: Nodes that caused the failure.
    """

    reason: str = ""
    retry: bool = True
    kind: Optional[str] = None
    nodes: Sequence[str] = ()


class Provenance(NamedTuple):
    """PROVENANCE, written by the submitting helper: how the current outputs of a stage began.

    Attributes:
        fingerprint: The stage's.
        inputs: Directory of an input stage -> id of its result.
        attempt: The attempt that began the outputs.
    """

    fingerprint: str
    inputs: Dict[str, Optional[str]]
    attempt: str


class StageResult(NamedTuple):
    """STAGE_RESULT and STAGE_MANIFEST.

    Attributes:
        fingerprint: The stage's.
        inputs: Directory of an input stage -> id of its result.
        id: Id of this result; it names the attempt that began the outputs.
        attempt: The attempt that completed the outputs.
    """

    fingerprint: str
    inputs: Dict[str, Optional[str]]
    id: str
    attempt: str


def as_json(shape: Any) -> Dict[str, Any]:
    """Return a shape as a JSON object without the fields that are None."""
    return {name: value for name, value in shape._asdict().items() if value is not None}


def parse(shape: Any, values: Any) -> Any:
    """Return a JSON value as a shape.

    Args:
        shape: Class of the shape.
        values: JSON value. Keys that the shape does not have (a newer version added them) are dropped.

    Returns:
        The shape; None if the value is no object, or a field without a default is missing.
    """
    if not isinstance(values, dict):
        return None
    known = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in values.items()
        if name in shape._fields and value is not None
    }
    try:
        return shape(**known)
    except TypeError:
        return None


# ---- atomic reading and writing


def write(path: str, text: str, mode: int = 0o600) -> None:
    """Create or replace a file atomically: no reader sees a part of it, and it never has a wider mode than ``mode``.

    Args:
        path: The file; missing directories are created with mode 0700.
        text: Its content.
        mode: Its mode.
    """
    write_bytes(path, text.encode("utf-8"), mode)


def write_bytes(path: str, data: bytes, mode: int = 0o600) -> None:
    """Create or replace a file of bytes; see :func:`write`."""
    folder = os.path.dirname(path)
    if folder:
        os.makedirs(folder, mode=0o700, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=folder or ".", prefix=".%s." % os.path.basename(path))
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        remove(temporary)
        raise


def write_json(path: str, value: Any) -> None:
    """Create or replace a JSON file; see :func:`write`. A shape is written as an object."""
    content = as_json(value) if hasattr(value, "_asdict") else value
    write(path, json.dumps(content, ensure_ascii=False))


def read(path: str) -> Optional[str]:
    """Return the text of a small file, without white space at both ends; None if it is missing."""
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read().strip()
    except FileNotFoundError:
        return None


def read_json(path: str) -> Any:
    """Return the value in a JSON file; None if the file is missing or is not JSON."""
    try:
        return json.loads(read(path) or "null")
    except ValueError:
        return None


def read_shape(shape: Any, directory: str, name: str) -> Any:
    """Return the JSON file ``name`` in ``directory`` as ``shape``; None if it is missing or of another shape."""
    return parse(shape, read_json(os.path.join(directory, name)))


def remove(path: str) -> None:
    """Delete a file if it exists."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
