#!/bin/bash
# Run a command on one node of a job, with the node's name in front of each line of its output.
# usage (by srun, one task a node): on_node.sh COMMAND [ARGUMENT...]    Exits with the command's exit code.
node=${SLURMD_NODENAME:-$(hostname -s)}
# What a progress bar drew over itself (up to the last carriage return) is left out.
"$@" 2>&1 | sed -u -e 's/\r$//' -e 's/.*\r//' -e "s/^/[$node] /"
exit "${PIPESTATUS[0]}"
