"""Each text with which Slurm refuses a request, and what it means."""

from __future__ import annotations

import pytest

from llm_bridge.slurm import refusals
from llm_bridge.slurm.refusals import Verdict, classify

POLICY = (
    "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size "
    "and/or time limits)"
)
FAILED = "sbatch: error: Batch job submission failed: "
TEST_ONLY = "allocation failure: "

NOT_NOW = [
    f"sbatch: error: QOSMaxSubmitJobPerUserLimit\n{POLICY}",
    f"sbatch: error: QOSGrpSubmitJobsLimit\n{POLICY}",
    f"sbatch: error: MaxSubmitJobsPerAccount\n{POLICY}",
    f"sbatch: error: AssocGrpSubmitJobsLimit\n{POLICY}",
    f"sbatch: error: AssocMaxSubmitJobLimit\n{POLICY}",
    f"sbatch: error: AssocMaxSubmitJobLimit\n{TEST_ONLY}Job violates accounting/QOS policy (job submit limit, ...)",
    FAILED + "MaxJobCount limit reached",
    FAILED + "Unable to create job record, try again",
    "sbatch: error: Slurm job queue full, sleeping and retrying.",
    "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying.\n"
    + FAILED
    + "Resource temporarily unavailable",
    FAILED + "Resource temporarily unavailable",
    "sbatch: error: Job creation temporarily disabled, retrying",
    FAILED + "System submissions disabled",
    "/usr/local/bin/sbatch: fork: Cannot allocate memory",
    FAILED + "Requested operation is presently disabled",
    FAILED + "I/O error writing script/environment to file",
    FAILED + "Requested account has breached requested QOS usage threshold",
    FAILED + "Required partition not available (inactive or drain)",
    FAILED + "Partition in DOWN state",
    TEST_ONLY + "Requested partition configuration not available now",
    TEST_ONLY + "Required node not available (down, drained or reserved)",
    TEST_ONLY + "Requested nodes are busy",
    FAILED + "Requested reservation not usable now",
    FAILED + "Licenses currently unavailable",
    TEST_ONLY + "Job can not start due to maintenance reservation.",
]
NO_ANSWER = [
    FAILED + "Unable to contact slurm controller (connect failure)",
    FAILED + "Socket timed out on send/recv operation",
    FAILED + "Incompatible versions of client and server code",
    FAILED + "Received zero length message",
    FAILED + "Failed to send entire message",
    FAILED + "Unexpected message received",
    FAILED + "Insane message length",
    FAILED + "Kernel reported delayed socket error after successful write(), client side likely closed",
    FAILED + "Cannot unpack credential",
    "sbatch: error: get_addr_info: getaddrinfo(ctl1:6817) failed: Temporary failure in name resolution\n"
    + FAILED
    + "No error",
    FAILED + "Zero Bytes were transmitted or received",
    FAILED + "Slurm backup controller in standby mode",
    FAILED + "Controller is in standby mode, try a different controller",
    FAILED + "Rate limit exceeded, please retry momentarily",
    FAILED + "Connection refused",
    FAILED + "Connection timed out establishing",
    FAILED + "Transport endpoint is not connected",
    FAILED + "Process is shutting down and closing all communications",
    FAILED + "Invalid authentication credential",
    FAILED + "Protocol authentication error",
    FAILED + "Authentication credential expired",
    "sbatch: error: If munged is up, restart with --num-threads=10\n"
    'sbatch: error: Munge encode failed: Failed to access "/run/munge/munge.socket.2": No such file or directory',
    "sbatch: error: fetch_config: DNS SRV lookup failed\nsbatch: fatal: Could not establish a configuration source",
    "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying.\n"
    + FAILED
    + "Socket timed out on send/recv operation",
]
NODES = [
    TEST_ONLY + "Requested node configuration is not available",
    FAILED + "Requested topology configuration is not available",
]
NEVER = [
    "sbatch: error: invalid partition specified: gpux\n" + FAILED + "Invalid partition name specified",
    FAILED + "No partition specified or system default partition",
    FAILED + "Invalid account or account/partition combination specified",
    FAILED + "Invalid qos specification",
    FAILED + "User's group not permitted to use this partition",
    FAILED + "Invalid feature specification",
    FAILED + "Invalid generic resource (gres) specification",
    FAILED + "Node count specification invalid",
    FAILED + "Requested time limit is invalid (missing or exceeds some limit)",
    FAILED + "More processors requested than permitted",
    "sbatch: error: Memory specification can not be satisfied\n"
    + FAILED
    + "Memory required by task is not available",
    f"sbatch: error: QOSMaxNodePerJobLimit\n{POLICY}",
    f"sbatch: error: AssocMaxWallDurationPerJobLimit\n{POLICY}",
    POLICY,
    FAILED + "Access/permission denied",
    FAILED + "Requested reservation is invalid",
    "sbatch: error: team01: please set --account (site rule 7)\n" + FAILED + "Unspecified error",
    "sbatch: unrecognized option '--gpus-per-node=8'",
]


@pytest.mark.parametrize("text", NOT_NOW)
def test_what_slurm_will_accept_later_is_not_now_and_says_what_is_waited_for(text: str) -> None:
    refusal = classify(text)
    assert refusal.verdict is Verdict.NOT_NOW and refusal.meaning.startswith("waiting for ")


@pytest.mark.parametrize("text", NO_ANSWER)
def test_a_controller_that_does_not_answer_has_refused_nothing(text: str) -> None:
    refusal = classify(text)
    assert refusal.verdict is Verdict.NO_ANSWER and refusal.meaning.startswith("waiting for ")


@pytest.mark.parametrize("text", NODES)
def test_a_lack_of_nodes_is_left_to_sinfo(text: str) -> None:
    assert classify(text).verdict is Verdict.NODES


@pytest.mark.parametrize("text", NEVER)
def test_what_the_request_itself_makes_impossible_is_never_and_so_is_an_unknown_text(text: str) -> None:
    assert classify(text).verdict is Verdict.NEVER


def test_the_letters_case_does_not_matter() -> None:
    assert classify("sbatch: SOCKET TIMED OUT").verdict is Verdict.NO_ANSWER


def test_a_command_without_output_is_no_answer_of_slurm() -> None:
    """Killed for memory on a login node, for example."""
    assert classify(" \n").verdict is Verdict.NO_ANSWER


def test_no_row_hides_a_later_one() -> None:
    for number, row in enumerate(refusals.TABLE):
        assert classify(row.text) == row, f"row {number} is never reached"
