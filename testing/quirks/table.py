"""The table of quirks. A user's bug report becomes one more row."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from testing.local_cluster import LocalCluster
from testing.local_cluster.accounts import USERS
from testing.local_cluster.settings import Settings
from testing.paths import home
from testing.quirks.quirk import NOTHING, OK, REFUSED, Act, Quirk
from testing.site import Site

# The cluster of report and tests.
SITE, SSH_PORT = "sites", 22933
NODE_NAMES = ("osk-gpu94", "a1-b2c")
GREETING = "*** Welcome to the cluster. Maintenance: Friday. ***"
MODULE_INIT = "/etc/profile.d/modules.sh"
DATE_IS_SLOW = 'exec "$REAL" -d "10 minutes ago" "$@"'
# Late is what one file server shows of a file that a node has written.
LATE_SECONDS = 6


def _everywhere(site: Site, *argv: str) -> None:
    for host in ("login", *site.cluster.settings.node_names):
        site.run(host, *argv)


# ---- nodes, partition, limits


def _node(state: str, node: str) -> Act:
    def act(site: Site) -> None:
        reason = ["Reason=fan"] if state == "DRAIN" else []
        done = site.cluster.run("ctl", ["scontrol", "update", f"NodeName={node}", f"State={state}", *reason])
        assert done.returncode == 0 or state == "RESUME", done.stderr

    return act


def _partition(state: str) -> Act:
    return lambda site: _scontrol(site, "update", "PartitionName=main", f"State={state}")


def _scontrol(site: Site, *arguments: str) -> None:
    site.run("ctl", "scontrol", *arguments)


def _limit_submissions(site: Site) -> None:
    """Let each user have one job, which one in hold is; accounting's limits apply after a restart of slurmctld."""
    conf = site.cluster.settings.etc_dir / "slurm" / "slurm.conf"
    if "AccountingStorageEnforce" not in conf.read_text():
        with conf.open("a") as file:
            file.write("AccountingStorageEnforce=associations,limits,qos\n")
        site.cluster.restart("slurmctld")
        site.cluster.wait_for_nodes()
    site.run("login", "sbatch", "--hold", "--output=/dev/null", "--wrap=true", user="svc")
    _set_limit(site, "1")


def _set_limit(site: Site, number: str) -> None:
    site.run("ctl", "sacctmgr", "-i", "modify", "qos", "normal", "set", f"MaxSubmitJobsPerUser={number}")


def _lift_limit(site: Site) -> None:
    _set_limit(site, "-1")


# ---- workspace


def _read_only(site: Site) -> None:
    path = str(site.workspace)
    _everywhere(site, "mount", "--bind", path, path)
    _everywhere(site, "mount", "-o", "remount,ro,bind", path)


def _unmount(site: Site) -> None:
    for host in ("login", *site.cluster.settings.node_names):
        site.cluster.run(host, ["umount", str(site.workspace)])


@contextmanager
def small_disk(cluster: LocalCluster) -> Iterator[None]:
    """Mount a small file system in the cluster's shared one, for the context.

    It must be there before the hosts boot, which copy the machine's mounts: so all of them see the same. The cluster's
    files are removed before and after.
    """
    folder = _small_disk(cluster)
    cluster.down()
    subprocess.run(["umount", str(folder)], capture_output=True)  # of a run that was killed
    cluster.down(wipe=True)
    folder.mkdir(parents=True, exist_ok=True)
    options = f"size=4m,mode=755,uid={USERS['svc']},gid={USERS['svc']}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        cluster.down()
        subprocess.run(["umount", str(folder)], check=True)
        cluster.down(wipe=True)


def _small_disk(cluster: LocalCluster) -> Path:
    return cluster.settings.shared_dir / "small"


def _fill(site: Site) -> None:
    site.cluster.run(
        "login", ["dd", "if=/dev/zero", f"of={_small_disk(site.cluster)}/full", "bs=4k"], user="svc"
    )


def _empty(site: Site) -> None:
    (_small_disk(site.cluster) / "full").unlink(missing_ok=True)


# ---- files of a site


def site_file(site: Site, name: str, text: str) -> Path:
    """Write a file of the site to the shared file system, and return its path."""
    path = site.cluster.settings.shared_dir / "site" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def _locale(site: Site) -> None:
    folder = site.cluster.settings.shared_dir / "site" / "locale"
    folder.mkdir(parents=True, exist_ok=True)
    site.run("login", "localedef", "-i", "ja_JP", "-f", "UTF-8", str(folder / "ja_JP.UTF-8"))


def _modules(initialization: str) -> Act:
    """Make a module of the site, and the script that initializes modules there.

    Args:
        initialization: Text of the script; FOLDER is that of the module, INIT Debian's own script.
    """

    def act(site: Site) -> None:
        folder = site_file(site, "modulefiles/verl/1.0", "#%Module1.0\nsetenv VERL_OF_SITE 1\n").parents[1]
        site_file(
            site, "modules.sh", initialization.replace("FOLDER", str(folder)).replace("INIT", MODULE_INIT)
        )

    return act


def _path_of_site(name: str) -> str:
    """Return a path on the shared file system of the report's cluster."""
    return str(Settings(SITE).shared_dir / name)


SPEAKS = {program: f'echo "{GREETING}"; exec "$REAL" "$@"' for program in ("squeue", "sacct", "scontrol")}


def _refused(text: str) -> dict[str, str]:
    """Return the outcomes for a workspace that cannot be written, in which jobs run already."""
    refused = f"{REFUSED}: {text}"
    return {"submit": refused, "follow": NOTHING, "orphan sweep": refused, "check": refused}


IN_VENV = f"PATH={home()}/cluster-env/bin:$PATH exec"
# Stand-ins that print their arguments, and run the command without a container.
PYXIS = f"""\
arguments=()
for argument in "$@"; do
    case $argument in --container-*) echo "pyxis: $argument" ;; *) arguments+=("$argument") ;; esac
done
{IN_VENV} "$REAL" "${{arguments[@]}}"
"""
APPTAINER = f"""\
echo "apptainer: $*"
shift # exec
while [[ $1 == -* ]]; do case $1 in --bind | --pwd) shift 2 ;; *) shift ;; esac; done
shift # the image
{IN_VENV} "$@"
"""
MODULES = {"environment": {"modules": ["verl/1.0"], "module_init": _path_of_site("site/modules.sh")}}
# Of a job on four nodes, one of which is drained. Slurm gives "Nodes required for job are ..." or "ReqNodeNotAvail".
WAITS_FOR_NODES = {"follow": "waits: Node", "check": "waits: out of service"}

QUIRKS: tuple[Quirk, ...] = (
    # ---- programs of the site in place of Slurm's
    Quirk("sbatch_speaks", "sbatch is a wrapper that prints a line before the job's id",
          commands={"sbatch": 'echo "sbatch: account team01 charged"; exec "$REAL" "$@"'}),
    Quirk("sbatch_says_more", "sbatch prints a line after the id, too, and the id has the cluster's name",
          commands={"sbatch": '"$REAL" "$@" | sed "s/^[0-9]*$/&;prod/"; code=${PIPESTATUS[0]}; '
                              'echo "sbatch: 99 GPU hours left"; exit $code'}),
    Quirk("sbatch_without_id", "sbatch prints no id at all",
          commands={"sbatch": '"$REAL" "$@" > /dev/null && echo "sbatch: thank you"'}),
    Quirk("squeue_speaks", "squeue, sacct and scontrol are wrappers that print a line first", commands=SPEAKS),
    # ---- variables for everybody
    Quirk("export_none", "SBATCH_EXPORT=NONE for every login", start_file="export SBATCH_EXPORT=NONE"),
    Quirk("five_minutes", "SBATCH_TIMELIMIT=5 and SBATCH_PARTITION=low for every login",
          start_file="export SBATCH_TIMELIMIT=5 SBATCH_PARTITION=low"),
    Quirk("inside_a_job", "Airflow's login is inside of a Slurm job, with SLURM_MEM_PER_CPU=100",
          start_file="export SLURM_MEM_PER_CPU=100 SLURM_MEM_PER_NODE=200 SLURM_JOB_ID=1 SLURM_JOBID=1 "
                     "SLURM_NTASKS=3 SLURM_NNODES=2 SLURM_JOB_NODELIST=n4 SLURM_CPU_BIND=quiet,mask_cpu:0x1"),
    Quirk("queue_of_high", "SQUEUE_PARTITION=high for every login", start_file="export SQUEUE_PARTITION=high"),
    Quirk("formats", "SQUEUE_FORMAT, SACCT_FORMAT, SLURM_TIME_FORMAT, SQUEUE_STATES for every login",
          start_file='export SQUEUE_FORMAT="%u %T" SQUEUE_FORMAT2=username SQUEUE_STATES=PENDING SQUEUE_SORT=-p '
                     "SACCT_FORMAT=user,state SLURM_TIME_FORMAT=relative SINFO_FORMAT=%P"),
    # ---- the login shell
    Quirk("greeting", "the login shell prints a greeting", start_file=f'echo "{GREETING}"'),
    Quirk("greeting_later", "the login shell begins to print a greeting while a job is followed",
          start_file=f'echo "{GREETING}"', greets_later=True),
    Quirk("dash", "the login shell is dash", shell="/bin/dash"),
    Quirk("tcsh", "the login shell is tcsh, with a greeting", shell="/usr/bin/tcsh", needs="/usr/bin/tcsh",
          start_file=f'echo "{GREETING}"\nsetenv SBATCH_EXPORT NONE\nset prompt="> "'),
    Quirk("fish", "the login shell is fish, with a greeting", shell="/usr/bin/fish", needs="/usr/bin/fish",
          start_file=f'echo "{GREETING}"\nset -gx SBATCH_EXPORT NONE'),
    Quirk("start_file_fails", "the start file's last command fails, and one reads the terminal",
          start_file='stty -a\n[ -n "$NO_SUCH" ] && echo ok\nfalse'),
    Quirk("locale", "ja_JP.UTF-8 for every login", prepare=_locale, needs="/usr/share/i18n/locales/ja_JP",
          start_file=f"export LOCPATH={_path_of_site('site/locale')} LC_ALL=ja_JP.UTF-8 LANGUAGE=ja"),
    # ---- modules and other scripts of the site
    Quirk("module_returns_1", "the modules' initialization ends with a test that fails", cluster=MODULES,
          prepare=_modules('export MODULEPATH=FOLDER\nsource INIT\n[ -n "$NO_SUCH" ] && echo ok\n')),
    Quirk("module_unset", "the modules' initialization reads a variable that is not set", cluster=MODULES,
          prepare=_modules("export MODULEPATH=FOLDER\nsource INIT\nif [ $NO_SUCH = 1 ]; then echo ok; fi\n")),
    Quirk("module_use", "the modules' initialization adds the site's folder at its end", cluster=MODULES,
          prepare=_modules("source INIT\nmodule use FOLDER\n")),
    # ---- containers
    Quirk("pyxis", "jobs run in a container of pyxis (a stand-in for its options of srun)", stage=True,
          cluster={"environment": {"venv": None, "container": "team/verl:1.0", "container_runtime": "pyxis"}},
          commands={"srun": PYXIS},
          followed=("pyxis: --container-image=team/verl:1.0", "pyxis: --container-mounts=")),
    Quirk("apptainer", "jobs run in a container of apptainer (a stand-in)", stage=True,
          prepare=lambda site: site_file(site, "verl.sif", ""),
          cluster={"environment": {"venv": None, "container": _path_of_site("site/verl.sif"),
                                   "container_runtime": "apptainer", "container_mounts": ["/opt"]}},
          commands={"apptainer": APPTAINER},
          followed=("apptainer: exec --nv ", " --bind /opt ")),
    # ---- nodes and limits
    Quirk("node_names", "nodes have names with dashes and digits", followed=("on osk-gpu94 in", "on a1-b2c in"),
          sbatch={"nodes": 2, "gpus_per_node": 1, "nodelist": ",".join(NODE_NAMES)}),
    Quirk("node_drained", "1 of 4 nodes is drained, and the jobs want all", nodes=4, sbatch={"nodes": 4},
          prepare=_node("DRAIN", "n4"), lift=_node("RESUME", "n4"),
          mend=_node("RESUME", "n4"), expected=WAITS_FOR_NODES),
    Quirk("partition_drained", "the partition is drained",
          prepare=_partition("DRAIN"), lift=_partition("UP"), mend=_partition("UP"),
          expected={"submit": "waits: Required partition not available",
                    "check": "waits: Required partition not available"}),
    Quirk("submit_limit", "the QOS limits each user to one job, which is in the queue",
          prepare=_limit_submissions, lift=_lift_limit, mend=_lift_limit,
          expected={"submit": "waits: QOSMaxSubmitJobPerUserLimit",
                    "check": "waits: QOSMaxSubmitJobPerUserLimit"}),
    Quirk("no_accounting", "the site has no accounting: sacct fails",
          commands={"sacct": 'echo "Slurm accounting storage is disabled" >&2; exit 1'}),
    Quirk("slurmdbd_off", "slurmdbd does not answer", prepare=lambda site: site.cluster.stop("slurmdbd"),
          mend=lambda site: site.cluster.start("slurmdbd")),
    # ---- files
    Quirk("outcome_late", "a job's outcome file is visible 6 s after the job's end",
          commands={"mv": f'case "$*" in *outcome.json*) setsid sh -c "sleep {LATE_SECONDS}; exec $REAL $*" '
                          '> /dev/null 2>&1 < /dev/null & exit 0 ;; esac; exec "$REAL" "$@"'}),
    Quirk("result_late", "a job's files are visible 6 s after the job's end",
          commands={"mv": f'case "$*" in *outcome.json*|*/result.json*) setsid sh -c "sleep {LATE_SECONDS}; '
                          'exec $REAL $*" > /dev/null 2>&1 < /dev/null & exit 0 ;; esac; exec "$REAL" "$@"'}),
    Quirk("read_only", "the workspace is read-only", prepare=_read_only, mend=_unmount,
          expected=_refused("Read-only file system")),
    Quirk("full", "the workspace is full", prepare=_fill, mend=_empty,
          cluster={"workspace": _path_of_site("small")},
          expected=_refused("No space left on device") | {"orphan sweep": OK}),  # its marks are empty files
    Quirk("clock", "the clock of a node is 10 minutes slow (stand-in for date)", commands_on={"date": DATE_IS_SLOW},
          sbatch={"gpus_per_node": 1, "nodelist": NODE_NAMES[0]}),
)  # fmt: skip

BY_NAME = {quirk.name: quirk for quirk in QUIRKS}
