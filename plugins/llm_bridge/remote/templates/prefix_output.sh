#!/bin/bash
# Run a command on one node of a job, and prefix each line of its output with the node's name.
# usage (by srun, one task per node): prefix_output.sh COMMAND [ARGUMENT...]    Exits with the command's exit code.
node=${SLURMD_NODENAME:-$(hostname -s)}
# Of a progress bar (tqdm's, or a bare percentage) the last state of a line is kept. Anything else before a carriage return
# becomes a line of its own: another process may have printed it between two states, and its line end may follow the next.
bar='([^\r]*\[[0-9]+:[0-9:]+[<,]([^]\r]|\[[^]\r]*\])*\]|[ 0-9.]*%) *\r'
"$@" 2>&1 | sed -uE -e 's/\r+$//' -e ":bar; s/(^|\\r)$bar/\\1/; t bar" -e 's/^\r+//' -e 's/\r+/\n/g' -e "s/^/[$node] /Mg"
exit "${PIPESTATUS[0]}"
