#!/bin/bash
# Run the entrypoint of a Ray job with its output in a file on the shared file system, where Airflow follows it.
# usage (a Ray job's entrypoint): ray_job.sh DIRECTORY COMMAND [ARGUMENT...]    Exits with the command's exit code.
#
# DIRECTORY/output.log gets the output, as does Ray's own log of the job; DIRECTORY/outcome.json tells how it ended. Ray
# itself keeps both on the head's node alone, and they are gone with the cluster.
set -u
directory=$1
shift
started=$(date +%s.%N)

# Ray stops a job by SIGTERM to each of its processes: tee stays for the command's last words.
exec 3> >(trap '' TERM INT; exec tee -a "$directory/output.log")
tee=$!
"$@" >&3 2>&1 3>&- &
command=$!
exec 3>&-
trap : TERM INT
while true; do
    wait "$command"
    code=$?
    kill -0 "$command" 2> /dev/null || break # else it was not the command that ended: a signal came
done

# A process that the command left behind may hold tee's other end for ever.
timeout 5 tail -s 0.1 --pid="$tee" -f /dev/null
cd "$directory" || exit "$code"
# The stage's result is there (include/login/done.py).
if [ "$code" -eq 0 ] && [ -e stage.json ]; then cp stage.json ../done.json.tmp; mv ../done.json.tmp ../done.json; fi
printf '{"exit_code": %d, "started": %s, "ended": %s}\n' "$code" "$started" "$(date +%s.%N)" \
    > outcome.json.tmp
mv outcome.json.tmp outcome.json
exit "$code"
