#!/bin/bash
#SBATCH --partition=gpu
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=96
#SBATCH --time=2:00:00
#SBATCH --gpus-per-node=8
#SBATCH --signal=B:USR1@3600
#SBATCH --open-mode=append

set -euo pipefail

export ATTEMPT_DIR=/shared/work/d/r/s/attempt-1
export JOBS_DIR="$ATTEMPT_DIR/jobs"
cd "$ATTEMPT_DIR"

# The file job_id says which job this attempt's is: whoever links it first (submit.py does it too). Slurm may have taken
# the job twice when sbatch "timed out", or after the attempt was given up: such a job ends here.
echo "$SLURM_JOB_ID" > "job_id.$SLURM_JOB_ID"
ln "job_id.$SLURM_JOB_ID" job_id 2> /dev/null || [ -e job_id ] || mv "job_id.$SLURM_JOB_ID" job_id
rm -f "job_id.$SLURM_JOB_ID"
if [ -e closed ] || [ "$(cat job_id)" != "$SLURM_JOB_ID" ]; then
    echo "[llm-bridge] Slurm job $SLURM_JOB_ID ends at once: this attempt's job is $(cat job_id), or was given up"
    exit 0
fi

# Its work is done: a slurmctld that crashed may have forgotten that, and have put the job back into the queue.
if grep -qs '"exit_code": 0,' outcome.json; then
    echo "[llm-bridge] Slurm job $SLURM_JOB_ID ends at once: it was done before"
    exit 0
fi

# The job tells its own end in a file, so that nobody has to ask slurmctld for it. A requeued job starts afresh.
rm -f outcome.json
# result_is_there FOLDER FILE: a stage's result is there, as FOLDER/stage.json says (include/login/done.py).
result_is_there() {
    if [ -e "$1/stage.json" ]; then cp "$1/stage.json" "$2.tmp"; mv "$2.tmp" "$2"; fi
}
# tell_outcome CODE FOLDER
tell_outcome() {
    printf '{"exit_code": %d, "ended": %s, "restarts": %d}\n' \
        "$1" "$(date +%s.%N)" "${SLURM_RESTART_COUNT:-0}" > "$2/outcome.json.tmp"
    mv "$2/outcome.json.tmp" "$2/outcome.json"
}
write_outcome() {
    local code=$?
    # Killed by a signal means that Slurm may run this job again: then it needs its secrets once more.
    if [ "$code" -lt 128 ]; then rm -rf "$ATTEMPT_DIR/secrets"; fi
    if [ "$code" -eq 0 ]; then result_is_there . ../done.json; fi
    tell_outcome "$code" .
}
trap write_outcome EXIT
# With a trap on EXIT alone, bash sees status 0 there when it is ended by SIGTERM (scancel, time limit).
trap 'exit 143' TERM

# Slurm warns this script when the job nears its end (--signal). When that will be goes into a file that the training
# looks at after each step (in_verl/): it saves the last step that it can.
export LLM_BRIDGE_ENDS_SOON="$ATTEMPT_DIR/ends_soon"
rm -f ends_soon
tell_end() {
    local ends now
    now=$(date +%s)
    # The time limit may have been changed, and a job that is preempted has its grace time.
    ends=$(SLURM_TIME_FORMAT=standard squeue -h -j "$SLURM_JOB_ID" -o %e) || ends=
    ends=$(date -d "${ends:-unknown}" +%s 2> /dev/null) || ends=$((now + 3600))
    echo "[llm-bridge] Slurm warns that the job ends in $((ends - now)) s"
    echo "$ends" > ends_soon.tmp && mv ends_soon.tmp ends_soon
}
trap tell_end USR1

# attend COMMAND...: run it and hear signals meanwhile; bash runs a trap only between commands or while it waits.
attend() {
    local pid code told=
    trap 'told=yes' TERM
    "$@" &
    pid=$!
    while kill -0 "$pid" 2> /dev/null; do wait "$pid" || true; done
    code=0
    wait "$pid" || code=$? # bash keeps it
    trap 'exit 143' TERM
    [ -z "$told" ] || exit 143
    return "$code"
}

printf '{"job_id": "%s", "started": %s, "nodes": "%s"}\n' \
    "$SLURM_JOB_ID" "$(date +%s.%N)" "$SLURM_JOB_NODELIST" > started.json

echo "[llm-bridge] $SLURM_JOB_NAME: Slurm job $SLURM_JOB_ID on $SLURM_JOB_NODELIST"

set +u  # module and conda scripts read unset variables
source /etc/profile.d/modules.sh
module reset || module purge
module load hpcx/2.18.1
set -u
set +u
source /opt/conda.sh
conda activate /envs/verl
set -u
IN_ENVIRONMENT=()
SRUN_OPTIONS=()
export NCCL_SOCKET_IFNAME=enp25s0np0 GLOO_SOCKET_IFNAME=enp25s0np0
# Since Slurm 22.05 srun no longer takes this from sbatch, and would give each task one CPU (srun(1)).
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK; fi
export TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
export NVTE_FUSED_ATTN=0
if [ -s secrets/wandb ]; then WANDB_API_KEY=$(cat secrets/wandb); export WANDB_API_KEY; fi
if [ -s secrets/hub ]; then HF_TOKEN=$(cat secrets/hub); export HF_TOKEN; fi

mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export RENDEZVOUS_HOST=${hosts[0]} LLM_BRIDGE_NODES="${hosts[*]}"
export LLM_BRIDGE_NETWORK_INTERFACE=enp25s0np0
srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --kill-on-bad-exit=0 --wait=0 "${SRUN_OPTIONS[@]}" \
    "${IN_ENVIRONMENT[@]}" python "$JOBS_DIR/preflight.py" "$ATTEMPT_DIR/settings.json"

# One node that fails ends the others: they would wait for it until NCCL's timeout.
attend srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --kill-on-bad-exit=1 "${SRUN_OPTIONS[@]}" \
    bash "$JOBS_DIR/on_node.sh" "${IN_ENVIRONMENT[@]}" python "$JOBS_DIR/sft.py" "$ATTEMPT_DIR/settings.json"

