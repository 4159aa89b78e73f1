"""Write a cluster file to start from: what the login node says, and what is guessed from it."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from llm_bridge.commands.doctor import quiet
from llm_bridge.config.cluster import Cluster
from llm_bridge.config.include import include_dir
from llm_bridge.config.loader import NAME, load_cluster
from llm_bridge.exceptions import ClusterUnavailable, ConfigError
from llm_bridge.pipeline import site_checks
from llm_bridge.remote.messages import DescribeAnswer, DescribeRequest, Folder
from llm_bridge.remote.transport import CommandFailed, find_programs
from llm_bridge.slurm import capacity, inventory, site_limits
from llm_bridge.slurm.client import SlurmClient, open_client
from llm_bridge.slurm.inventory import Partition
from llm_bridge.slurm.site_limits import Row

# Folders that sites give to users, the best first.
FOLDERS = (
    *("$SCRATCH", "$WORK", "$WORKDIR", "$PROJECT", "$PROJECT_DIR"),
    *("/scratch/$USER", "/work/$USER", "/lustre/$USER", "/gpfs/$USER", "/shared/$USER", "/data/$USER"),
    *("/shared", "/scratch", "/work", "~"),
)
SHARED = ("lustre", "nfs", "nfs4", "gpfs", "beegfs", "ceph", "wekafs", "fuse.juicefs", "panfs")
SLURM = (
    "/opt/slurm*/bin/sbatch",
    "/opt/slurm/*/bin/sbatch",
    "/usr/local/slurm*/bin/sbatch",
    "/cm/shared/apps/slurm/*/bin/sbatch",
)
MODULES = (
    *(
        "/etc/profile.d/modules.sh",
        "/etc/profile.d/lmod.sh",
        "/etc/profile.d/z00_lmod.sh",
        "/etc/profile.d/*lmod*.sh",
    ),
    *("/usr/share/lmod/lmod/init/bash", "/usr/share/[Mm]odules/init/bash", "/opt/*/lmod/init/bash"),
)
CONDA = (
    *("~/*conda*/etc/profile.d/conda.sh", "~/miniforge*/etc/profile.d/conda.sh"),
    *("/opt/*conda*/etc/profile.d/conda.sh", "/opt/miniforge*/etc/profile.d/conda.sh"),
)
VENVS = "~/*/bin/activate", "~/.venv/bin/activate", "~/venvs/*/bin/activate", "~/envs/*/bin/activate"
IMAGES = "~/*.sif", "~/images/*.sif"
# Size of small jobs, on a node that has more.
SMALL_CPUS, SMALL_GIB = 4, 16
DEFAULT_TIME = "1-00:00:00"


@dataclass(frozen=True)
class Site:
    """Answers of a site.

    Attributes:
        login_python: Python for helpers.
        slurm_bin: Directory of Slurm's commands; None where they are in PATH.
        described: The login node.
        partitions: The partitions.
        limits: Settings of each partition.
        associations: Accounts of the user with their QOS.
    """

    login_python: str
    slurm_bin: str | None
    described: DescribeAnswer
    partitions: list[Partition]
    limits: Mapping[str, Row]
    associations: list[Row]

    def files(self, *endings: str) -> list[str]:
        """Return the files on the login node that end with one of some texts."""
        return [path for path in dict.fromkeys(self.described.files) if path.endswith(endings)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("name", metavar="NAME", help="name of the file to write: include/clusters/NAME.yaml")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--ssh-conn-id", metavar="ID", help="Airflow connection of type SSH to the login node")
    where.add_argument("--local", action="store_true", help="Airflow runs on the login node")
    parser.add_argument("--force", action="store_true", help="replace a file that exists")


def main(arguments: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    quiet()
    path = include_dir() / "clusters" / f"{arguments.name}.yaml"
    try:
        if not NAME.fullmatch(arguments.name):
            raise ConfigError(f"NAME {arguments.name!r} may have letters, digits, '_', '-' and '.' only")
        if path.exists() and not arguments.force:
            raise ConfigError(f"{path} exists: choose another NAME, or replace it with --force")
        site = asyncio.run(ask(arguments.name, arguments.ssh_conn_id))
        text = render(arguments.name, arguments.ssh_conn_id, site)
        before = path.read_text(encoding="utf-8") if path.exists() else None
        _write(path, text)
        try:
            load_cluster(arguments.name)
        except ConfigError as error:
            if before is None:
                path.unlink()
            else:
                _write(path, before)
            raise ConfigError(
                f"{error}. The site's answers make no valid file, and nothing was changed: copy "
                "include/clusters/example.yaml instead"
            ) from None
    except (ConfigError, ClusterUnavailable, CommandFailed, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(
        f"wrote {path}\nRead its comments, which mark guesses, and set environment (for one that does not exist yet, "
        f"run: python -m llm_bridge install-environment {arguments.name}); then run: python -m llm_bridge doctor "
        f"{arguments.name}"
    )
    return 0


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


async def ask(name: str, ssh_conn_id: str | None) -> Site:
    """Return what the login node and Slurm say.

    Args:
        name: Name of the new cluster file.
        ssh_conn_id: Airflow connection of the login node; None where Airflow runs on it.

    Raises:
        ConfigError: The login does not work, or the login node has no usable Python or no Slurm.
        ClusterUnavailable: The login node does not answer.
    """
    cluster = Cluster(name=name, ssh_conn_id=ssh_conn_id, workspace="/tmp", gpus_per_node=1)
    async with open_client(cluster) as client:
        finding, usable = await site_checks.login_python(client, runs_guard=False)
        if usable is None:
            raise ConfigError(finding.sentence)
        request = DescribeRequest(FOLDERS, (*SLURM, *MODULES, *CONDA, *VENVS, *IMAGES))
        described: DescribeAnswer = await usable.call_helper("describe_site", request, DescribeAnswer)
        slurm_bin = None
        if not await find_programs(client.transport, ["sinfo"]):
            found = [file for file in described.files if file.endswith("/sbatch")]
            if not found:
                raise ConfigError(
                    "the login node has no sinfo in PATH, and no Slurm in the usual folders. Check that it is a login "
                    "node of a Slurm cluster; if it is, copy include/clusters/example.yaml and set slurm_bin"
                )
            slurm_bin = found[0].rpartition("/")[0]
        cluster = cluster.model_copy(
            update={"login_python": usable.cluster.login_python, "slurm_bin": slurm_bin}
        )
        if slurm_bin is None:
            return await _ask_slurm(SlurmClient(cluster, client.transport), described)
    async with open_client(cluster) as client:
        return await _ask_slurm(client, described)


async def _ask_slurm(client: SlurmClient, described: DescribeAnswer) -> Site:
    done = await client.run([*capacity.ALL_NODES])
    if done.code:
        raise ConfigError(f"sinfo fails on the login node: {done.stderr.strip() or done.stdout.strip()}")
    return Site(
        login_python=client.cluster.login_python,
        slurm_bin=client.cluster.slurm_bin,
        described=described,
        partitions=inventory.partitions(done.stdout),
        limits=await site_limits.partitions(client.run),
        associations=await site_limits.associations(client.run, described.user),
    )


def render(name: str, ssh_conn_id: str | None, site: Site) -> str:
    """Return the text of a cluster file.

    Args:
        name: Its name.
        ssh_conn_id: Airflow connection of the login node; None where Airflow runs on it.
        site: Answers of the site.
    """
    training = inventory.for_trainings(site.partitions)
    lines = [
        f'# Cluster file of {name}, written by `python -m llm_bridge new-cluster`. Lines that say "found" are what the',
        '# login node answered; check those that say "guess". include/clusters/example.yaml explains every key.',
        *_pair("description", f"Slurm cluster {name}"),
        "",
        "# --- Login node ---",
        *_pair("ssh_conn_id", ssh_conn_id),
        *_pair("login_python", site.login_python, "found"),
    ]
    if site.slurm_bin:
        lines += _pair("slurm_bin", site.slurm_bin, "found: Slurm's commands are not in PATH")
    if site.described.cleared:
        lines += _comment(
            "The login environment sets these variables, which have no effect on llm-bridge; set below what they mean: "
            + ", ".join(site.described.cleared)
        )
    lines += ["", "# --- Directories ---", *_workspace(site.described.folders)]
    lines += ["", "# --- Slurm resources ---", *_resources(site, training)]
    lines += ["", "# --- Environment with torch and verl ---", *_environment(site)]
    lines += ["", "# --- Secrets: ids of Airflow connections (type Generic) whose password is the token ---"]
    lines += ["# hub: {conn_id: huggingface}  # for uploads and gated models", "# wandb_conn_id: wandb"]
    return "\n".join(lines) + "\n"


def _workspace(folders: Iterable[Folder]) -> list[str]:
    known = sorted(folders, key=lambda each: each.kind not in SHARED)  # the order is kept otherwise
    lines = [
        "# guess: must be on a file system that login and compute nodes share. Candidates on the login node:"
    ]
    lines += [
        f"#   {each.path}: {each.free_gib:,.0f} GiB free, {each.kind or 'unknown file system'}"
        for each in known
    ]
    path = f"{known[0].path.rstrip('/')}/llm-bridge" if known else "/shared/llm-bridge"
    return [*lines, *_pair("workspace", path, "guess")]


def _resources(site: Site, training: Partition | None) -> list[str]:
    lines = [f"# found: partition {each}" for each in site.partitions]
    gpus = training.gpus if training else 0
    if training:
        lines += _pair(
            "partition", training.name, "found" if len(site.partitions) == 1 else "guess, of those above"
        )
    if site.associations:
        accounts = sorted({row["account"] for row in site.associations})
        kinds = sorted({name for row in site.associations for name in row["QOS"].split(",") if name})
        lines.append(
            f"# found: accounts {', '.join(accounts)}; QOS {', '.join(kinds) or 'none'}. Without the keys: your default"
        )
        lines.append(f"{'' if len(accounts) == 1 else '# '}account: {_value(accounts[0])}")
        lines += [f"# qos: {_value(kind)}" for kind in kinds[:1]]
    if gpus and training:
        lines += _pair("gpus_per_node", gpus, f"found: {training.gres}")
        lines.append("gpu_request: gpus-per-node  # or gres, where sbatch refuses --gpus-per-node")
        if training.types:
            several = " (the nodes have several)" if len(set(training.types)) > 1 else ""
            lines.append(
                f"# gpu_type: {_value(training.types[0])}  # found{several}; needed where a partition has several types"
            )
        lines.append("device: cuda")
    else:
        lines.append(
            "# guess: Slurm knows no GPUs here. On a cluster without GPUs keep device: cpu; with GPUs, set"
        )
        lines.append(
            "# gpus_per_node to a node's, device: cuda, and gpu_request: none, which gives GPU jobs whole nodes."
        )
        lines += [*_pair("gpus_per_node", 1, "guess"), "gpu_request: none", "device: cpu"]
    if training:
        lines += _pair("cpus_per_task", training.cpus, "guess: all CPUs of a node")
        if training.features:
            lines.append(
                f"# constraint: {_value(training.features[0])}  # found: features {', '.join(training.features)}"
            )
    lines += _pair("mem", "0", "guess: all memory of a node")
    limit = inventory.is_limited(site.limits.get(training.name, {})) if training else None
    lines += _pair(
        "time_limit", limit or DEFAULT_TIME, "found: MaxTime of the partition" if limit else "guess"
    )
    return lines + _stages(site, training)


def _stages(site: Site, training: Partition | None) -> list[str]:
    """Return the settings of the stages that need no GPU."""
    small = inventory.for_small_jobs(site.partitions) if training and training.gpus else None
    nodes = small or training
    values: dict[str, Any] = {"partition": small.name} if small else {}
    if nodes:
        values["cpus_per_task"] = min(SMALL_CPUS, nodes.cpus)
        values["mem"] = f"{max(1, min(SMALL_GIB, nodes.memory_gib))}G"
    text = yaml.safe_dump(values, default_flow_style=True, sort_keys=False).strip()
    guess = "guess: small jobs" + (", in a partition without GPUs" if small else "")
    return [f"stages:  # {guess}", f"  prepare: &small {text}", "  merge: *small", "  upload: *small"]


def _environment(site: Site) -> list[str]:
    lines = ["# One of venv, conda and container; without any, jobs use the python in PATH."]
    modules = site.files("/modules.sh", "lmod.sh", "/init/bash")
    conda, venvs = (
        site.files("/conda.sh"),
        [path.removesuffix("/bin/activate") for path in site.files("/bin/activate")],
    )
    images = site.files(".sif")
    for key, found in (
        ("module_init", modules),
        ("conda_init", conda),
        ("venv", venvs),
        ("container", images),
    ):
        if found:
            lines.append(f"# found for {key}: {', '.join(found[:5])}")
    lines += [
        "# environment:",
        f"#   module_init: {_value(modules[0] if modules else '/etc/profile.d/modules.sh')}",
    ]
    lines.append("#   modules: []")
    lines.append(f"#   venv: {_value(venvs[0] if venvs else '/shared/venvs/verl')}")
    if site.described.interfaces:
        names = ", ".join(site.described.interfaces)
        lines.append(
            f"# guess: interfaces of the login node: {names}; those of the nodes may differ. For NCCL, Gloo and Ray:"
        )
        lines.append(f"# network_interface: {_value(site.described.interfaces[0])}")
    return lines


def _pair(key: str, value: Any, comment: str = "") -> list[str]:
    return [f"{key}: {_value(value)}" + (f"  # {' '.join(comment.split())}" if comment else "")]


def _comment(text: str) -> list[str]:
    return [f"# {' '.join(text.split())}"]


def _value(value: Any) -> str:
    """Return a value as YAML on one line; one of a site is data, also where it looks like YAML."""
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).strip().removesuffix("...").strip()
