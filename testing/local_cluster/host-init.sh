#!/bin/bash
# host-init.sh HOSTNAME BIND_TABLE COMMAND...
# First process of a host, started in new net, uts, ipc, mount and pid namespaces: sets the host's own name, /run,
# /dev/shm and files, then executes COMMAND (a role script) as PID 1.
# BIND_TABLE: a file with one mount per line, SOURCE<tab>TARGET, in order.
set -euo pipefail
name=$1 table=$2
shift 2

hostname "$name"
# The copied mount table has every cluster's network namespaces: unmount them, or they outlive their own cluster.
umount --lazy --recursive /run/netns 2>/dev/null || true
mount -t tmpfs -o mode=755,size=256m tmpfs /run
mkdir -p -m 1777 /run/lock
mount -t tmpfs -o mode=1777,size=4g tmpfs /dev/shm
while IFS=$'\t' read -r source target; do
    mount --rbind "$source" "$target"
done <"$table"
exec "$@"
