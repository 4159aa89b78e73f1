"""Texts with which Slurm's commands refuse a request, and what each one means: never, not now, or no answer.

The table is data: a site's text becomes one more row here and in ``tests/unit/slurm/test_refusals.py``. Sources of the
texts: ``src/common/slurm_errno.c``, ``src/common/slurm_protocol_defs.c`` (reasons, which sbatch prints on a line
of their own), ``src/sbatch/sbatch.c`` and the auth plugins of Slurm 22.05 to 25.11.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class Verdict(Enum):
    """Meaning of a refusal."""

    # slurmctld did not answer, or not as an authenticated controller; it may have accepted the request nevertheless.
    NO_ANSWER = "no answer"
    # slurmctld refused the request, and will accept the same request later.
    NOT_NOW = "not now"
    # Too few nodes fit the request. sbatch counts all configured nodes, but `sbatch --test-only` only those in service,
    # so that the answer of the latter does not tell "never" from "not now"; sinfo does (capacity.py).
    NODES = "nodes"
    # The same request would be refused again.
    NEVER = "never"


class Refusal(NamedTuple):
    """Row of the table.

    Attributes:
        text: Part of the command's output; upper and lower case are equal.
        verdict: Its meaning.
        meaning: For NOT_NOW and NO_ANSWER, what is waited for; for NEVER, what to change.
    """

    text: str
    verdict: Verdict
    meaning: str = ""


_CONTROLLER = "waiting for slurmctld"
_AUTHENTICATION = "waiting for Slurm's authentication (munge) on the login node and the controller"
_UPDATE = "waiting for the end of an update of Slurm"
_SUBMIT_LIMIT = "waiting for other jobs to end: the number of submitted jobs is limited"
_QUEUE = "waiting for slurmctld to accept jobs"
_PARTITION = "waiting for the partition to be in service"
_NODES = "waiting for nodes"
_RESERVATION = "waiting for the reservation"

# The first row that matches decides. NO_ANSWER comes first, because a command that retried prints several errors, and
# after one of these the request may have been accepted. A specific reason comes before Slurm's general text, which
# follows it in the output ("QOSMaxSubmitJobPerUserLimit", then "Job violates accounting/QOS policy").
TABLE: tuple[Refusal, ...] = (
    # ---- no answer: the controller
    Refusal("Unable to contact slurm controller", Verdict.NO_ANSWER, _CONTROLLER),
    Refusal("Socket timed out", Verdict.NO_ANSWER, _CONTROLLER),
    Refusal("Zero Bytes were transmitted or received", Verdict.NO_ANSWER, _CONTROLLER),
    Refusal("Header lengths are longer than data received", Verdict.NO_ANSWER, _CONTROLLER),
    Refusal("Received zero length message", Verdict.NO_ANSWER, _CONTROLLER),
    Refusal("Failed to send entire message", Verdict.NO_ANSWER, _CONTROLLER),
    Refusal("Unexpected message received", Verdict.NO_ANSWER, _CONTROLLER),
    Refusal("Insane message length", Verdict.NO_ANSWER, _CONTROLLER),
    Refusal("client side likely closed", Verdict.NO_ANSWER, _CONTROLLER),
    Refusal("Message send failure", Verdict.NO_ANSWER, _CONTROLLER),
    Refusal("Message receive failure", Verdict.NO_ANSWER, _CONTROLLER),
    Refusal("Communication connection failure", Verdict.NO_ANSWER, _CONTROLLER),
    Refusal("Communication shutdown failure", Verdict.NO_ANSWER, _CONTROLLER),
    Refusal("Unexpected missing socket error", Verdict.NO_ANSWER, _CONTROLLER),
    Refusal("Transport endpoint is not connected", Verdict.NO_ANSWER, _CONTROLLER),
    Refusal("Connection refused", Verdict.NO_ANSWER, _CONTROLLER),
    Refusal("Connection reset by peer", Verdict.NO_ANSWER, _CONTROLLER),
    Refusal("Connection timed out", Verdict.NO_ANSWER, _CONTROLLER),
    Refusal("Connection rejected by handler", Verdict.NO_ANSWER, _CONTROLLER),
    Refusal("Connection forced closed by quiesce timeout", Verdict.NO_ANSWER, _CONTROLLER),
    Refusal("No route to host", Verdict.NO_ANSWER, _CONTROLLER),
    Refusal("Broken pipe", Verdict.NO_ANSWER, _CONTROLLER),
    Refusal("shutting down and closing all communications", Verdict.NO_ANSWER, _CONTROLLER),
    Refusal("in standby mode", Verdict.NO_ANSWER, "waiting for the primary slurmctld or the takeover by the backup"),
    Refusal("Rate limit exceeded, please retry", Verdict.NO_ANSWER, "waiting for the site's rate limit (rl_enable)"),
    # A site updates its controller and its login nodes one after the other.
    Refusal("Incompatible versions of client and server code", Verdict.NO_ANSWER, _UPDATE),
    # ---- no answer: the configuration that a "configless" login node gets from slurmctld
    Refusal("Could not establish a configuration source", Verdict.NO_ANSWER, _CONTROLLER),
    Refusal("DNS SRV lookup failed", Verdict.NO_ANSWER, _CONTROLLER),
    Refusal("Can't find an address, check slurm.conf", Verdict.NO_ANSWER, _CONTROLLER),
    Refusal("name resolution", Verdict.NO_ANSWER, "waiting for the login node's name service (DNS)"),
    # ---- no answer: authentication
    Refusal("Protocol authentication error", Verdict.NO_ANSWER, _AUTHENTICATION),
    Refusal("Invalid authentication credential", Verdict.NO_ANSWER, _AUTHENTICATION),
    Refusal("Authentication credential invalid", Verdict.NO_ANSWER, _AUTHENTICATION),
    Refusal("Authentication credential expired", Verdict.NO_ANSWER, _AUTHENTICATION),
    Refusal("Failed to connect to authentication agent", Verdict.NO_ANSWER, _AUTHENTICATION),
    Refusal("Error generating job credential", Verdict.NO_ANSWER, _AUTHENTICATION),
    Refusal("Cannot unpack credential", Verdict.NO_ANSWER, _AUTHENTICATION),
    Refusal("Munge encode failed", Verdict.NO_ANSWER, _AUTHENTICATION),
    Refusal("Munge decode failed", Verdict.NO_ANSWER, _AUTHENTICATION),
    Refusal("munged", Verdict.NO_ANSWER, _AUTHENTICATION),
    Refusal("Unable to connect to database", Verdict.NO_ANSWER, "waiting for slurmdbd"),
    # ---- not now: limits on the number of jobs. Their names all contain "SubmitJob"; other limits compare the request
    # itself with the limit.
    Refusal("SubmitJob", Verdict.NOT_NOW, _SUBMIT_LIMIT),
    Refusal("MaxJobCount limit reached", Verdict.NOT_NOW, _QUEUE),
    Refusal("Unable to create job record, try again", Verdict.NOT_NOW, _QUEUE),
    Refusal("Slurm job queue full", Verdict.NOT_NOW, _QUEUE),
    # ---- not now: submissions
    Refusal("temporarily unable to accept job", Verdict.NOT_NOW, _QUEUE),
    Refusal("Job creation temporarily disabled", Verdict.NOT_NOW, _QUEUE),
    Refusal("Resource temporarily unavailable", Verdict.NOT_NOW, _QUEUE),
    Refusal("Cannot allocate memory", Verdict.NOT_NOW, "waiting for memory on the login node"),
    Refusal("System submissions disabled", Verdict.NOT_NOW, _QUEUE),
    Refusal("Requested operation is presently disabled", Verdict.NOT_NOW, _QUEUE),
    Refusal("I/O error writing script/environment to file", Verdict.NOT_NOW, _QUEUE),
    Refusal("Requested account has breached requested QOS usage threshold", Verdict.NOT_NOW, _QUEUE),
    # ---- not now: partition, nodes, reservation
    Refusal("Required partition not available (inactive or drain)", Verdict.NOT_NOW, _PARTITION),
    Refusal("Partition in DOWN state", Verdict.NOT_NOW, _PARTITION),
    Refusal("Requested partition configuration not available now", Verdict.NOT_NOW, _PARTITION),
    Refusal("Required node not available (down, drained or reserved)", Verdict.NOT_NOW, _NODES),
    Refusal("Requested nodes are busy", Verdict.NOT_NOW, _NODES),
    Refusal("Max powered up nodes reached", Verdict.NOT_NOW, _NODES),
    Refusal("Immediate execution impossible", Verdict.NOT_NOW, _NODES),
    Refusal("Job can not start immediately", Verdict.NOT_NOW, _NODES),
    Refusal("Job can not start due to maintenance reservation", Verdict.NOT_NOW, _RESERVATION),
    Refusal("Requested reservation not usable now", Verdict.NOT_NOW, _RESERVATION),
    Refusal("Requested reservation is in use", Verdict.NOT_NOW, _RESERVATION),
    Refusal("Licenses currently unavailable", Verdict.NOT_NOW, "waiting for licenses"),
    Refusal("Switch resources currently not available", Verdict.NOT_NOW, _NODES),
    Refusal("Required ports are in use", Verdict.NOT_NOW, _NODES),
    Refusal("currently unavailable", Verdict.NOT_NOW, _NODES),
    # ---- nodes
    Refusal("Requested node configuration is not available", Verdict.NODES),
    Refusal("Requested topology configuration is not available", Verdict.NODES),
    Refusal("Required nodes lack available resources", Verdict.NODES),
    Refusal("No available nodes in topology", Verdict.NODES),
    # ---- never
    Refusal("Invalid partition name specified", Verdict.NEVER, "correct `partition`: `sinfo -s`"),
    Refusal("No partition specified or system default partition", Verdict.NEVER, "set `partition`"),
    Refusal("User's group not permitted to use this partition", Verdict.NEVER, "choose another `partition`"),
    Refusal("Requested nodes not in this partition", Verdict.NEVER, "correct `nodelist` or `partition`"),
    Refusal("Invalid node name specified", Verdict.NEVER, "correct `nodelist` and `exclude`"),
    Refusal("Node count specification invalid", Verdict.NEVER, "correct `nodes` and `nodelist`"),
    Refusal("Invalid account", Verdict.NEVER, "correct `account`: `sacctmgr show associations`"),
    Refusal("Invalid qos specification", Verdict.NEVER, "correct `qos`: `sacctmgr show associations`"),
    Refusal("Invalid feature specification", Verdict.NEVER, "correct `constraint`: `sinfo -o %f`"),
    Refusal("Invalid generic resource (gres) specification", Verdict.NEVER, "correct `gpus_per_node`, `gpu_request`"),
    Refusal("Invalid GRES specification", Verdict.NEVER, "correct `gpus_per_node`, `gpu_request`"),
    Refusal("Requested GRES option unsupported", Verdict.NEVER, "set `gpu_request: gres`"),
    Refusal("Requested time limit is invalid", Verdict.NEVER, "lower or set the stage's or cluster's `time_limit`"),
    Refusal("CPU count specification invalid", Verdict.NEVER, "lower `cpus_per_task`"),
    Refusal("More processors requested than permitted", Verdict.NEVER, "lower `cpus_per_task`"),
    Refusal("Memory required by task is not available", Verdict.NEVER, "lower `mem`"),
    Refusal("Access denied to requested reservation", Verdict.NEVER, "correct the reservation"),
    Refusal("Requested reservation is invalid", Verdict.NEVER, "correct the reservation"),
    Refusal("Job violates accounting/QOS policy", Verdict.NEVER, "request less than the limits of account and QOS"),
    Refusal("Access/permission denied", Verdict.NEVER, "the user may not do this on the cluster"),
)  # fmt: skip


def classify(output: str) -> Refusal:
    """Return the row for the output of a command that failed; a text that is not in the table means NEVER.

    A command without any output was killed or ran out of memory: that is no answer of Slurm.

    Args:
        output: The command's output.
    """
    if not output.strip():
        return Refusal("", Verdict.NO_ANSWER, "the command ended without a message")
    folded = output.casefold()
    for row in TABLE:
        if row.text.casefold() in folded:
            return row
    return Refusal("", Verdict.NEVER)
