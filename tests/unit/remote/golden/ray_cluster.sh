mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export RENDEZVOUS_HOST=${hosts[0]} LLM_BRIDGE_NODES="${hosts[*]}"
export LLM_BRIDGE_NETWORK_INTERFACE=enp25s0np0

attend python3 -u "$NODE_ARCHIVE" ray-head-guard \
    srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
    --cpu-bind=none --kill-on-bad-exit=0 --wait=0 ${SRUN_OPTIONS[@]+"${SRUN_OPTIONS[@]}"} \
    ${IN_ENVIRONMENT[@]+"${IN_ENVIRONMENT[@]}"} python3 -u "$NODE_ARCHIVE" ray-node-agent

