#!/bin/bash
#SBATCH --partition=gpu
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=96
#SBATCH --time=2:00:00
#SBATCH --gpus-per-node=8
#SBATCH --signal=B:USR1@3600
#SBATCH --open-mode=append

# The user's environment (BASH_ENV, SHELLOPTS, POSIXLY_CORRECT) and a site's scripts may change what bash reads here: in
# POSIX mode `wait` forgets children that have ended, and aliases such as mv='mv -i' wait for an answer.
plain_shell() {
    unset POSIXLY_CORRECT
    export -n SHELLOPTS BASHOPTS
    set +Cf +o posix
    unalias -a
    shopt -u expand_aliases failglob nullglob nocasematch
    IFS=$' \t\n'
}
plain_shell
set -euo pipefail

export ATTEMPT_DIR=/shared/work/d/r/s/attempt-1
export NODE_ARCHIVE="$ATTEMPT_DIR/node.pyz"
cd "$ATTEMPT_DIR"

# The file job_id holds the id of this attempt's job: that of the first job that was linked there, by this script or by
# submit.py. Slurm may have accepted the job twice when sbatch "timed out", or after the attempt was closed: such a job
# ends here. If the first file holds no id, the second one decides (attempt_dir.job_of reads them in the same way).
job_in() { sed -nE 's/^[ \t]*([1-9][0-9]{0,9})(;[^ \t\r]+)?[ \t\r]*$/\1/p' "$1" | tail -n 1; }
for claim in job_id job_id.again; do
    mine="job_id.$SLURM_JOB_ID"
    echo "$SLURM_JOB_ID" > "$mine"
    if ! ln "$mine" "$claim" 2> /dev/null && [ ! -e "$claim" ]; then
        # No hard links here. A folder cannot be renamed to one that is not empty, so the first process decides, too.
        mkdir -p "$mine.d"
        cp "$mine" "$mine.d/job_id"
        mv -T "$mine.d" "$claim.claimed" 2> /dev/null || rm -rf "$mine.d"
        if cp "$claim.claimed/job_id" "$mine"; then mv "$mine" "$claim"; fi
    fi
    rm -f "$mine"
    attempt_job=$(job_in "$claim") || attempt_job=
    if [ -n "$attempt_job" ]; then break; fi
done
if [ -z "$attempt_job" ]; then
    echo "[llm-bridge] error: no Slurm job id in job_id nor job_id.again of $ATTEMPT_DIR: this attempt may" \
        "have another job. No work was done; the next attempt does it" >&2
    exit 1
fi
if [ -e attempt_closed ] || [ "$attempt_job" != "$SLURM_JOB_ID" ]; then
    echo "[llm-bridge] Slurm job $SLURM_JOB_ID ends at once: this attempt's job is $attempt_job, or it was closed"
    exit 0
fi

# The job's work is done already: a slurmctld that crashed may lose that and requeue the job.
if grep -qs '"exit_code": 0,' outcome.json; then
    echo "[llm-bridge] Slurm job $SLURM_JOB_ID ends at once: it was done before"
    exit 0
fi

# Slurm ends a job whose node does not answer, and forgets jobs in a crash, although the processes may run on. While a
# file's time changes, they do: no other attempt is submitted (submit.py), and no other run of this job goes on. A run
# that is superseded ends itself.
run="$(date +%s%N).${SLURMD_NODENAME:-$(uname -n)}"
heartbeat="$ATTEMPT_DIR/heartbeat.$run"
superseded() {
    [ ! -e "$ATTEMPT_DIR/attempt_closed" ] || return 0
    local current
    current=$(cat "$ATTEMPT_DIR/current_run") && [ -n "$current" ] && [ "$current" != "$run" ]
}
beat() {
    set +eu
    trap - ERR
    trap '' TERM USR1
    local ticks=0 pause
    # Nothing is ever written there: `read` pauses without a process that would outlive the job.
    exec {pause}<> <(:) || return
    while kill -0 $$; do
        touch "$heartbeat"
        read -r -t 5 -u "$pause"
        if ! superseded; then continue; fi
        # Slurm itself usually ends the job within this time.
        case $((ticks += 1)) in
            6)
                echo "[llm-bridge] Slurm job $SLURM_JOB_ID ends: another attempt replaces it" >> "$ATTEMPT_DIR/output.log"
                kill -TERM -- -$$
                ;;
            12) kill -KILL -- -$$ ;;
        esac
    done
}
# In a full workspace there is no such file, instead of one with the id of an earlier run, by which this one would end.
if ! { echo "$run" > "current_run.$run" && mv "current_run.$run" current_run; }; then
    rm -f "current_run.$run" current_run
fi
# In a subshell: with another child, bash's `wait PID` blocks if PID ended at the moment of a trapped signal (bash 5.2).
beating=$(beat > /dev/null 2>&1 & echo $!)
# modified FILE: print the time of a file's modification; opening it makes NFS fetch the time from its server (nfs(5)).
modified() { stat -L -c %y - < "$1" 2> /dev/null || true; }
for other in heartbeat.*; do
    if [ "$ATTEMPT_DIR/$other" = "$heartbeat" ] || [ ! -e "$other" ]; then continue; fi
    while before=$(modified "$other"); sleep 15; [ "$(modified "$other")" != "$before" ]; do
        echo "[llm-bridge] waiting for the end of an earlier run of this job that Slurm considers ended: $other"
    done
    rm -f "$other"
done

# The job writes its outcome to a file, so that no process has to query slurmctld for it. A requeued job starts again.
rm -f outcome.json
# publish_result FOLDER FILE: publish a stage's result, as in its stage_manifest.json (stage_result.py).
publish_result() {
    if [ -e "$1/stage_manifest.json" ]; then cp "$1/stage_manifest.json" "$2.tmp"; mv "$2.tmp" "$2"; fi
}
# write_outcome CODE FOLDER: write the outcome file.
write_outcome() {
    printf '{"exit_code": %d, "ended": %s, "restarts": %d}\n' \
        "$1" "$(date +%s.%N)" "${SLURM_RESTART_COUNT:-0}" > "$2/outcome.json.tmp"
    mv "$2/outcome.json.tmp" "$2/outcome.json"
}
on_exit() {
    local code=$?
    cd "$ATTEMPT_DIR"
    if [ -n "$site_script" ] && [ "$code" -lt 128 ]; then
        if [ "$code" -eq 0 ]; then code=1; fi
        end_reason environment "$site_script ended the job (exit code $code); its commands must not call 'exit'"
    fi
    # After a signal (code 128 or more) Slurm may run this job again, which needs its secrets then. They are removed by
    # the poller once the job has ended, by the helper that closes the attempt, or by the next attempt.
    if [ "$code" -lt 128 ]; then rm -rf "$ATTEMPT_DIR/secrets"; fi
    if [ "$code" -eq 0 ]; then publish_result . ../stage_result.json; fi
    # Once the outcome is visible the output is read for the last time: NFS may hold back what is not synced.
    dd if=/dev/null of=output.log conv=notrunc,nocreat,fsync 2> /dev/null || true
    write_outcome "$code" .
    kill -KILL "$beating" 2> /dev/null || true
    rm -f "$heartbeat"
    exit "$code"
}
# end_reason KIND SENTENCE: report the cause of the job's end, which a retry cannot remove.
end_reason() {
    local text=${2//\\/\\\\}
    echo "[llm-bridge] error: $2" >&2
    printf '{"reason": "%s", "retry": false, "kind": "%s"}\n' "${text//\"/\\\"}" "$1" > "$ATTEMPT_DIR/reason.json.tmp"
    mv "$ATTEMPT_DIR/reason.json.tmp" "$ATTEMPT_DIR/reason.json"
}
# unexpected CODE LINE COMMAND: name the command at which `set -e` ends this script. A stage's program explains its own
# failure, and its last line stays the last one.
unexpected() {
    case $3 in attend\ * | return\ * | srun\ * | \"\${IN_ENVIRONMENT*) return ;; esac
    echo "[llm-bridge] error: line $2 of $ATTEMPT_DIR/script.sh ended with exit code $1: $3" >&2
}
site_script= # while a script of the site runs: its name
trap on_exit EXIT
trap 'unexpected $? $LINENO "$BASH_COMMAND"' ERR
# With a trap on EXIT alone, $? is 0 there when SIGTERM ends bash (scancel, time limit).
trap 'exit 143' TERM

# Slurm signals this script before the job ends (--signal). The script writes the time of the end to a file that the
# training reads after each step (remote/node/verl/hooks/), so that it saves the last possible step.
export LLM_BRIDGE_ENDS_SOON="$ATTEMPT_DIR/deadline"
rm -f deadline
on_time_warning() {
    local ends now
    now=$(date +%s)
    # The end is queried, because the time limit may have been changed, and a preempted job has a grace time.
    ends=$(SLURM_TIME_FORMAT=standard squeue -h -j "$SLURM_JOB_ID" -o %e) || ends=
    ends=$(date -d "${ends:-unknown}" +%s 2> /dev/null) || ends=$((now + 3600))
    echo "[llm-bridge] Slurm warns that the job ends in $((ends - now)) s"
    echo "$ends" > deadline.tmp && mv deadline.tmp deadline
}
trap on_time_warning USR1

# attend COMMAND...: run a command and handle signals meanwhile; bash runs traps only between commands and in `wait`.
attend() {
    local pid code terminated=
    trap 'terminated=yes' TERM
    "$@" &
    pid=$!
    while kill -0 "$pid" 2> /dev/null; do wait "$pid" || true; done
    code=0
    wait "$pid" || code=$? # bash keeps the exit code of a child that has ended
    trap 'exit 143' TERM
    [ -z "$terminated" ] || exit 143
    return "$code"
}

printf '{"job_id": "%s", "started": %s, "nodes": "%s", "partition": "%s"}\n' \
    "$SLURM_JOB_ID" "$(date +%s.%N)" "$SLURM_JOB_NODELIST" "${SLURM_JOB_PARTITION:-}" > started.json

echo "[llm-bridge] $SLURM_JOB_NAME: Slurm job $SLURM_JOB_ID on $SLURM_JOB_NODELIST${SLURM_JOB_PARTITION:+, partition $SLURM_JOB_PARTITION}"

# environment_error KEY TEXT: end the job because of a key of the cluster file.
environment_error() {
    site_script=
    end_reason environment "include/clusters/site.yaml, environment.$1: $2 (on node ${SLURMD_NODENAME:-$(uname -n)})"
    exit 1
}
# A site's scripts are written for interactive shells: any of their commands may fail, and they read unset variables.
# What they are for is checked afterwards.
trap - ERR
set +eu
slurm_variables=$(declare -p ${!SLURM_@})
# Of the login environment: with it no other Python than its own starts.
unset PYTHONHOME
if [ ! -r /etc/profile.d/modules.sh ]; then environment_error module_init '/etc/profile.d/modules.sh cannot be read'; fi
site_script=/etc/profile.d/modules.sh
source /etc/profile.d/modules.sh
if ! type module > /dev/null 2>&1; then environment_error module_init '/etc/profile.d/modules.sh defines no command '"'"'module'"'"''; fi
site_script="module reset"
module_path=${MODULEPATH:-}
module reset || module purge
# A reset also removes folders that the environment or the end of the initialization had added to MODULEPATH.
IFS=: read -ra module_folders <<< "$module_path"
for folder in "${module_folders[@]}"; do
    case ":${MODULEPATH:-}:" in *":$folder:"*) continue ;; esac
    if [ -n "$folder" ]; then module use --append "$folder"; fi
done
# module_loaded NAME CODE: check a module after "module load", whose exit code may be that of the module's last command.
module_loaded() {
    case ":${LOADEDMODULES:-}:" in *":$1:"* | *":$1/"*) return ;; esac
    if [ "$2" -ne 0 ]; then environment_error modules "'module load $1' failed, see above; 'module avail' lists the valid names"; fi
    echo "[llm-bridge] warning: 'module load $1' succeeded, but LOADEDMODULES has no such name: ${LOADEDMODULES:-(empty)}" >&2
}
site_script='module load hpcx/2.18.1'
module load hpcx/2.18.1
module_loaded hpcx/2.18.1 $?
site_script=/opt/conda.sh
if [ ! -r "$site_script" ]; then environment_error conda_init "$site_script cannot be read"; fi
source "$site_script"
if ! type conda > /dev/null 2>&1; then environment_error conda_init "$site_script defines no command 'conda'"; fi
site_script='conda activate /envs/verl'
conda activate /envs/verl
if [ ! "${CONDA_PREFIX:-/}" -ef /envs/verl ]; then
    environment_error conda "'$site_script' failed, see above; CONDA_PREFIX is ${CONDA_PREFIX:-empty}"
fi
site_script=
plain_shell
set -euo pipefail
trap on_exit EXIT
trap 'exit 143' TERM
trap 'unexpected $? $LINENO "$BASH_COMMAND"' ERR
cd "$ATTEMPT_DIR"
# Slurm's own variables as Slurm set them; but a module may lead to Slurm's configuration.
slurm_conf=${SLURM_CONF:-}
unset ${!SLURM_@}
eval "$slurm_variables"
if [ -n "$slurm_conf" ]; then export SLURM_CONF="$slurm_conf"; fi
if ! type python python3 > /dev/null 2>&1; then
    environment_error conda "it has no 'python' and 'python3'"
fi
# Variables that would steer srun and squeue. srun passes all variables on, also where the job itself got none
# (--export=NONE, sbatch(1)).
unset ${!SBATCH_@} ${!SRUN_@} ${!SALLOC_@} ${!SQUEUE_@} ${!SCANCEL_@} ${!SCONTROL_@}
export SLURM_EXPORT_ENV=ALL
IN_ENVIRONMENT=()
SRUN_OPTIONS=()
export NCCL_SOCKET_IFNAME=enp25s0np0 GLOO_SOCKET_IFNAME=enp25s0np0
# Since Slurm 22.05 srun does not inherit --cpus-per-task from sbatch, and gives each task one CPU (srun(1)).
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK; fi
export TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
# Packages in ~/.local (`pip install --user`) would come before those of the environment.
export PYTHONNOUSERSITE=1
export NVTE_FUSED_ATTN=0
if [ -s secrets/wandb ]; then WANDB_API_KEY=$(cat secrets/wandb); export WANDB_API_KEY; fi
if [ -s secrets/hub ]; then HF_TOKEN=$(cat secrets/hub); export HF_TOKEN; fi

mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export RENDEZVOUS_HOST=${hosts[0]} LLM_BRIDGE_NODES="${hosts[*]}"
export LLM_BRIDGE_NETWORK_INTERFACE=enp25s0np0
srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --kill-on-bad-exit=0 --wait=0 ${SRUN_OPTIONS[@]+"${SRUN_OPTIONS[@]}"} \
    ${IN_ENVIRONMENT[@]+"${IN_ENVIRONMENT[@]}"} python "$NODE_ARCHIVE" preflight "$ATTEMPT_DIR/settings.json"

# A node that fails ends the others, which would otherwise wait for it until NCCL's timeout.
attend srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --kill-on-bad-exit=1 ${SRUN_OPTIONS[@]+"${SRUN_OPTIONS[@]}"} \
    bash "$ATTEMPT_DIR/prefix_output.sh" ${IN_ENVIRONMENT[@]+"${IN_ENVIRONMENT[@]}"} python "$NODE_ARCHIVE" sft "$ATTEMPT_DIR/settings.json"

