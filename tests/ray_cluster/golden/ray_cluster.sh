export LLM_BRIDGE_NETWORK_INTERFACE=eth0

attend python3 -u "$JOBS_DIR/ray_guard.py" \
    srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
    --cpu-bind=none --kill-on-bad-exit=0 --wait=0 \
    "${SRUN_OPTIONS[@]}" "${IN_ENVIRONMENT[@]}" python3 -u "$JOBS_DIR/ray_node.py"

