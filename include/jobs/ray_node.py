"""Ray on one node, for as long as the cluster lives: the one srun task of this node runs this.

python3 ray_node.py --head NODE --head-ip IP --block PORT

The head runs on NODE, workers on all others. What happens is told in `ray_nodes/NODE.json` (see NodeReports),
Ray's own output goes to `ray_nodes/NODE.log`. ray_guard.py starts this and decides when the cluster ends.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import sys
import time
from pathlib import Path

import ray_memory
import ray_network
import ray_ports
import ray_setup
import ray_supervise
from job_io import read_json
from ray_reports import NodeReports, say
from ray_setup import NodeProblem

HEAD_POLL = 0.25  # seconds
STOP_GRACE = 1.5  # seconds: nothing in Ray is worth waiting for, and a site may have set KillWait to 3


class Node:
    """This node's part of the cluster."""

    def __init__(self, name: str, arguments: argparse.Namespace, attempt_dir: Path) -> None:
        self.name, self.attempt_dir = name, attempt_dir
        self.head_ip, self.is_head = arguments.head_ip, name == arguments.head
        self.head_block = arguments.block
        self.gcs = f"{self.head_ip}:{ray_ports.ports(self.head_block)['gcs']}"
        self.settings = read_json(attempt_dir / "settings.json")
        self.log = attempt_dir / "ray_nodes" / f"{name}.log"
        self.folder: Path | None = None  # on this node's disk
        self.known: dict = {"python": sys.executable}

    def report(self, state: str, message: str) -> None:
        """Tell the guard how this node is doing."""
        self.known |= {"state": state, "message": message}
        NodeReports(self.attempt_dir).write(self.name, self.known)

    def start_ray(self) -> int:
        """Check and prepare everything, load Ray, start it when the head is there; its process id.

        Raises:
            NodeProblem, RuntimeError, OSError: it cannot run here; the text says why.
        """
        self.report("starting", "has only begun to start")
        deadline = time.monotonic() + self.settings["ready_minutes"] * 60
        ray_setup.raise_open_files_limit(self.name)
        block = self.head_block if self.is_head else self._free_block()
        ray_setup.prepare_environment(block)
        address = self.head_ip if self.is_head else ray_network.own_address(self.name)
        gpus = ray_setup.usable_gpus(dict(os.environ), self.settings["gpus_per_node"])
        cpus = ray_setup.usable_cpus(dict(os.environ), self.settings.get("cpus_per_node"))
        parent = Path(self.settings.get("temp_dir") or "/tmp/ray")
        self.folder = ray_setup.make_folder(parent, os.environ["SLURM_JOB_ID"])
        self.known |= {"ip": address, "block": block, "gpus": gpus, "cpus": cpus}
        command = ray_setup.ray_command(
            name=self.name,
            address=address,
            block=block,
            gcs=None if self.is_head else self.gcs,
            cpus=cpus,
            gpus=gpus,
            temp_dir=self.folder / ray_setup.TEMP_DIR,
            object_store_gib=self.settings.get("object_store_gib"),
        )
        pid, let_go = ray_supervise.start_held(command, self.log)
        if not self.is_head:
            self.report("waiting", f"waits for the head at {self.gcs}")
            self._wait_for_head(deadline)
        self.report("running", "has started Ray, which has not registered yet")
        let_go()
        return pid

    def _free_block(self) -> int:
        """Only the head's ports have to be known to others; here the same block may be in use."""
        blocks = ray_ports.blocks(ray_ports.ephemeral_start())
        first = blocks.index(self.head_block) if self.head_block in blocks else 0
        return ray_ports.choose(first, blocks, ray_ports.taken)

    def _wait_for_head(self, deadline: float) -> None:
        while not ray_network.answers(self.gcs):
            if time.monotonic() > deadline:
                raise NodeProblem(
                    f"cannot reach the head's GCS at {self.gcs}; check the network between the nodes"
                )
            time.sleep(HEAD_POLL)
        # The head itself joins when its agent answers. A worker that is earlier sleeps for 2 s, and fails after 40 s
        # (ray/_private/utils.py: get_all_node_info_until_retrieved), which a cold file system takes easily.
        agent = f"{self.head_ip}:{ray_ports.ports(self.head_block)['agent_http']}"
        while not ray_network.answers(agent) and time.monotonic() < deadline:
            time.sleep(HEAD_POLL)

    def clean_up(self) -> None:
        """End Ray, save what tells why it died, remove its folder."""
        ray_supervise.end_children(STOP_GRACE)
        if self.folder is not None:
            logs = self.folder / ray_setup.TEMP_DIR / "session_latest" / "logs"
            ray_setup.keep_logs(logs, self.attempt_dir / "ray_logs" / self.name)
            shutil.rmtree(self.folder, ignore_errors=True)


def run(node: Node) -> int:
    """Run Ray until it ends or is told to stop; the exit code of this task."""
    try:
        code = ray_supervise.wait_for(node.start_ray())
        told = f"Ray ended with exit code {code}: {ray_setup.cause(node.log)}{ray_memory.hint()}"
        raise NodeProblem(f"{told} (see {node.log})")
    except ray_supervise.Stopped as signal_name:
        say(f"stopping ({signal_name})", node.name)
        node.report("stopped", f"was stopped ({signal_name})")
        return 0
    except (NodeProblem, RuntimeError, OSError, ValueError, KeyError) as error:
        ray_supervise.ignore_stop_signals()
        say(f"error: {error}", node.name)
        node.report("failed", str(error))
        return 1
    finally:
        node.clean_up()
        say("Ray has stopped here", node.name)


def main() -> int:
    """Entry point; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--head", required=True, help="name of the node that the head runs on")
    parser.add_argument("--head-ip", required=True, help="address of the head for all nodes")
    parser.add_argument("--block", type=int, required=True, help="first port of the head's block")
    arguments = parser.parse_args()
    os.umask(0o077)
    ray_supervise.raise_stopped_on_signals()
    ray_supervise.adopt_orphans()
    name = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    return run(Node(name, arguments, Path(os.environ["ATTEMPT_DIR"])))


if __name__ == "__main__":
    sys.exit(main())
