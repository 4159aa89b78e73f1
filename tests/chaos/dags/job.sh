#!/bin/bash
#SBATCH --partition={{ params.partition }}
#SBATCH --{{ "requeue" if params.requeue else "no-requeue" }}
{% if params.node %}
#SBATCH --nodelist={{ params.node }}
{% endif %}
# A job that says what truly happens to it: in the ledger, which nobody else writes, and line by line in its output.
say() {
    printf '%s %s %s %s %s\n' "$1" "$SLURM_JOB_NAME" "$SLURM_JOB_ID" "${SLURM_RESTART_COUNT:-0}" "$EPOCHREALTIME" \
        >> {{ params.ledger }}
}
say began
trap 'say terminated; exit 143' TERM
for ((n = 1; n <= {{ params.lines }}; n++)); do
    echo "$EPOCHREALTIME line $n of $SLURM_JOB_NAME, life ${SLURM_RESTART_COUNT:-0}"
    sleep {{ params.pause }} &
    wait $!
done
{% if params.flood_mb %}
head -c {{ params.flood_mb }}M /dev/zero | tr '\0' x | fold -w 99
{% endif %}
say {{ "failed" if params.exit_code else "done" }}
exit {{ params.exit_code }}
