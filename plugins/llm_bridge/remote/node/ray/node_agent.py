"""Run Ray on one node for the lifetime of the cluster, as this node's task of the job's srun.

``python node.pyz ray-node-agent --head NODE --head-ip IP --block PORT``

The head runs on NODE, workers on all others. The node's state is in `ray_nodes/NODE.json` (see NodeReports), Ray's own
output in `ray_nodes/NODE.log`. The head guard starts this program and decides when the cluster ends.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import sys
import time
from pathlib import Path
from typing import Any

from llm_bridge.remote import attempt_dir
from llm_bridge.remote.node.common import gpu_use
from llm_bridge.remote.node.common.job_io import read_json
from llm_bridge.remote.node.ray import memory, network, node_setup, ports, supervise
from llm_bridge.remote.node.ray.node_reports import NodeReports, log_line
from llm_bridge.remote.node.ray.node_setup import NodeProblem

HEAD_POLL_INTERVAL_SECONDS = 0.25
# Short: no part of Ray needs longer to stop, a site may have set KillWait to 3 s, and the head guard waits for the rest
# of the cleanup, too (TERMINATED_STOP_TIMEOUT_SECONDS).
STOP_GRACE_SECONDS = 1.0


class Node:
    """This node's part of the cluster.

    Args:
        name: This node's name in Slurm.
        arguments: Of the command line.
        attempt: The attempt's directory.
    """

    def __init__(self, name: str, arguments: argparse.Namespace, attempt: Path) -> None:
        self.name, self.attempt = name, attempt
        self.head_ip, self.is_head = arguments.head_ip, name == arguments.head
        self.head_block: int = arguments.block
        self.gcs = f"{self.head_ip}:{ports.ports(self.head_block)['gcs']}"
        self.settings = read_json(attempt / attempt_dir.SETTINGS)
        self.log = attempt / attempt_dir.RAY_NODES / f"{name}.log"
        self.log_start = 0  # its size before Ray starts
        self.folder: Path | None = None  # on this node's disk
        self.reservation: socket.socket | None = None  # of the block of ports
        self.known: dict[str, Any] = {"python": sys.executable}

    def report(self, state: str, message: str) -> None:
        """Write this node's report, with everything that is known so far.

        Args:
            state: As in NodeReports.
            message: Continues a sentence that starts with the node's name.
        """
        self.known |= {"state": state, "message": message}
        NodeReports(self.attempt).write(self.name, self.known)

    def start_ray(self) -> int:
        """Check and prepare this node, load Ray, start it when the head is up, and return its process id.

        Raises:
            NodeProblem: Ray cannot run on this node.
            RuntimeError: There is no usable address, or no free port.
            OSError: A file or process could not be created.
        """
        self.report("starting", "is starting")
        deadline = time.monotonic() + self.settings["ready_minutes"] * 60
        node_setup.raise_open_files_limit(self.name)
        block = self.head_block if self.is_head else self._free_block()
        node_setup.prepare_environment(block)
        address = self.head_ip if self.is_head else network.own_address(self.name)
        gpus = node_setup.usable_gpus(dict(os.environ), self.settings["gpus_per_node"])
        cpus = node_setup.usable_cpus(dict(os.environ), self.settings.get("cpus_per_node"))
        parent = Path(self.settings.get("temp_dir") or "/tmp/ray")
        self.folder = node_setup.make_folder(parent, os.environ["SLURM_JOB_ID"])
        self.known |= {"ip": address, "block": block, "gpus": gpus, "cpus": cpus}
        command = node_setup.ray_command(
            name=self.name,
            address=address,
            block=block,
            gcs=None if self.is_head else self.gcs,
            cpus=cpus,
            gpus=gpus,
            temp_dir=self.folder / node_setup.TEMP_DIR,
            object_store_gib=self.settings.get("object_store_gib"),
        )
        self.log_start = self.log.stat().st_size if self.log.exists() else 0
        pid, release = supervise.start_held(command, self.log)
        if not self.is_head:
            self.report("waiting", f"waits for the head at {self.gcs}")
            self._wait_for_head(deadline)
        self.report("running", "has started Ray, which has not registered with the head yet")
        release()
        return pid

    def _free_block(self) -> int:
        """Return a free block; on a worker the head's block may be in use, and only the head's ports must be known."""
        blocks = ports.blocks(ports.ephemeral_start())
        first = blocks.index(self.head_block) if self.head_block in blocks else 0
        block, self.reservation = ports.take(first, blocks)
        return block

    def _wait_for_head(self, deadline: float) -> None:
        while not network.answers(self.gcs):
            if time.monotonic() > deadline:
                raise NodeProblem(
                    f"cannot reach the head's GCS at {self.gcs}; check the network between the nodes"
                )
            time.sleep(HEAD_POLL_INTERVAL_SECONDS)
        # The head itself joins when its agent answers. A worker that is earlier sleeps for 2 s, and fails after 40 s
        # (ray/_private/utils.py: get_all_node_info_until_retrieved), which a cold file system easily takes.
        agent = f"{self.head_ip}:{ports.ports(self.head_block)['agent_http']}"
        while not network.answers(agent) and time.monotonic() < deadline:
            time.sleep(HEAD_POLL_INTERVAL_SECONDS)

    @property
    def ray_logs(self) -> Path | None:
        """The directory of Ray's own logs on this node's disk; None before it is prepared."""
        return self.folder / node_setup.TEMP_DIR / "session_latest" / "logs" if self.folder else None

    def clean_up(self) -> None:
        """Stop Ray, save the logs that explain its end, and remove its directory."""
        supervise.end_children(STOP_GRACE_SECONDS)
        if self.folder is not None and self.ray_logs is not None:
            node_setup.keep_logs(self.ray_logs, self.attempt / attempt_dir.RAY_LOGS / self.name)
            shutil.rmtree(self.folder, ignore_errors=True)


def run(node: Node) -> int:
    """Run Ray until it ends or a stop signal arrives, and return the exit code of this task."""
    try:
        code = supervise.wait_for(node.start_ray())
        cause = node_setup.cause(node.log, node.ray_logs, node.log_start)
        ended = f"Ray ended with exit code {code}: {cause}{memory.hint()}"
        raise NodeProblem(f"{ended} (see {node.log})")
    except supervise.Stopped as signal_name:
        log_line(f"stopping ({signal_name})", node.name)
        node.report("stopped", f"was stopped ({signal_name})")
        return 0
    except (NodeProblem, RuntimeError, OSError, ValueError, KeyError) as error:
        supervise.ignore_stop_signals()
        log_line(f"error: {error}", node.name)
        node.report("failed", str(error))
        return 1
    finally:
        node.clean_up()
        log_line("Ray has stopped here", node.name)


def main() -> int:
    """Run the program; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--head", required=True, help="name of the node that runs the head")
    parser.add_argument("--head-ip", required=True, help="address of the head for all nodes")
    parser.add_argument("--block", type=int, required=True, help="first port of the head's block")
    arguments = parser.parse_args()
    os.umask(0o077)
    supervise.raise_stopped_on_signals()
    supervise.adopt_orphans()
    name = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    attempt = Path(os.environ["ATTEMPT_DIR"])
    with gpu_use.sampled(attempt):
        return run(Node(name, arguments, attempt))
