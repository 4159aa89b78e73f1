"""Options of sbatch that a job must not set: the only table of them, for cluster files, resources and scripts alike."""

from __future__ import annotations

import re
import shlex

_OWN_FILE = "llm-bridge reads the job's output from its own file in $ATTEMPT_DIR"
_NO_JOB = "sbatch would submit no job"
# Option -> reason. Most are also on llm-bridge's sbatch command line, which wins over #SBATCH lines without a message.
REFUSED = {
    "array": "a job array is not supported, because one task is one job, and its other elements would do no work; use "
    "a mapped task (expand) instead",
    "chdir": "the job runs in its attempt's directory, $ATTEMPT_DIR; use `cd` in the script",
    "clusters": "the job would run on another cluster than the cluster file's",
    "comment": "llm-bridge finds its jobs by it",
    "error": f"standard error would be lost: {_OWN_FILE}, with both streams",
    "help": _NO_JOB,
    "job-name": "llm-bridge finds its jobs by their names",
    "open-mode": "a requeued job must not truncate its earlier output",
    "output": _OWN_FILE,
    "parsable": "llm-bridge sets it, to read the job's id",
    "test-only": _NO_JOB,
    "usage": _NO_JOB,
    "version": _NO_JOB,
    "wait": "the task waits for the job",
    "wrap": "the job's program is its script",
}
# These replace a value that llm-bridge changes from attempt to attempt.
REFUSED_IN_SCRIPT = {
    "exclude": "it would replace the nodes that llm-bridge excludes after a failure; use exclude of the task's "
    "resources or of the cluster file",
}
# Of all jobs, those of trainings among them; a job of one's own may set it.
REFUSED_IN_CLUSTER_FILE = {
    "signal": "it would replace the signal with which Slurm lets a training save its last step before the time limit",
}
_SHORT = {
    **{
        "a": "array",
        "D": "chdir",
        "e": "error",
        "h": "help",
        "J": "job-name",
        "M": "clusters",
        "o": "output",
    },
    **{"V": "version", "W": "wait", "x": "exclude"},
}
# Short options without a value (sbatch's source, `opt.c`): others may follow in the same word.
_SHORT_FLAGS = "hHkIOQsuvVW"
_HETEROGENEOUS = re.compile(r"#SBATCH\s+(hetjob|packjob)\b")


def refusals(options: list[str], *, in_script: bool = False, in_cluster_file: bool = False) -> list[str]:
    """Return the reasons why options are refused, as ``OPTION: reason``.

    Args:
        options: Long options without dashes.
        in_script: They are from a script's ``#SBATCH`` lines.
        in_cluster_file: They are from a cluster file, and apply to all jobs.
    """
    table = REFUSED | (REFUSED_IN_SCRIPT if in_script else {})
    table |= REFUSED_IN_CLUSTER_FILE if in_cluster_file else {}
    return [f"{name}: {table[name]}" for name in table if any(_means(given, name) for given in options)]


def script_refusals(directives: list[str]) -> list[str]:
    """Return the reasons why a script's ``#SBATCH`` lines are refused, as ``LINE: reason``.

    Args:
        directives: The lines.
    """
    found = []
    for line in directives:
        if _HETEROGENEOUS.match(line):
            found.append(f"{line}: a heterogeneous job is not supported; use one task per job")
        try:
            options = _options_in(line)
        except ValueError as error:
            found.append(f"{line}: {error}")
            continue
        found += [f"{line}: {reason}" for reason in refusals(options, in_script=True)]
    return found


def _means(given: str, name: str) -> bool:
    """Return true if sbatch reads a long option as another one: it accepts unambiguous beginnings (getopt_long(3))."""
    return given == name or (len(given) >= 2 and name.startswith(given))


def _options_in(line: str) -> list[str]:
    """Return the long names of the options in an ``#SBATCH`` line; short options that are never refused are left out.

    Raises:
        ValueError: A quote is not closed.
    """
    found = []
    for word in shlex.split(line.removeprefix("#SBATCH"), comments=True):
        if word.startswith("--"):
            found.append(word[2:].partition("=")[0])
        elif word.startswith("-"):
            for letter in word[1:]:
                found.append(_SHORT.get(letter, ""))
                if letter not in _SHORT_FLAGS:
                    break  # the rest of the word is its value
    return [name for name in found if name]
