# Run a command on the login node without the variables that sites and users set to steer Slurm's commands: they would
# change what sbatch submits and which jobs squeue lists. Variables that lead to the controller stay. Variables of Airflow
# that a start file sets hold secrets, and sbatch would pass them on to each job. Their names are kept in
# LLM_BRIDGE_CLEARED, for `doctor`.
# usage: login_command.sh DIRECTORY MARKER COMMAND [ARGUMENT...]    MARKER precedes the command's output on a line of
# its own: a login shell that greets prints before it, perhaps without a line end. DIRECTORY, which may be empty, is
# searched first for commands.
#
# transport.py joins these lines into one, because csh accepts no line end in quotes, and interprets "!" there: each
# line ends with ";", and none has "!", a single quote, or a comment.
LLM_BRIDGE_CLEARED=$(env | sed -nE "/^SLURM_(CONF|CONF_SERVER|JWT|SACK_[A-Z]+)=/d; s/^((_?AIRFLOW|S(LURM|BATCH|QUEUE|ACCT|ACCTMGR|CANCEL|INFO|CONTROL|ALLOC|RUN|PRIO|STAT|SHARE|DIAG|BCAST|CRON|REPORT|TRIGGER|ATTACH))_[A-Za-z0-9_]*)=.*/\1/p");
unset $LLM_BRIDGE_CLEARED;
if [ -n "$LLM_BRIDGE_CLEARED" ]; then LLM_BRIDGE_CLEARED=$(echo $LLM_BRIDGE_CLEARED); export LLM_BRIDGE_CLEARED; fi;
if [ -n "$1" ]; then PATH="$1:$PATH"; export PATH; fi;
printf "\n%s\n" "$2";
shift 2;
exec "$@"
