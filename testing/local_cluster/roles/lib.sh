# shellcheck shell=bash
# Common functions of the role scripts: start, watch and stop daemons. Only to be sourced.
#
# A role script sets ROLE and DAEMONS (in start order), defines start_NAME for each daemon, and ends with
# `role_main "$@"`:
#   ROLE                       run as the host's main process: start all daemons, stop them on TERM
#   ROLE start|stop|kill|restart DAEMON    act on one daemon of the running host (kill is SIGKILL)
#   ROLE status                one line per daemon: NAME PID, or NAME down; rc 1 if one is down
#
# A daemon that ends is reported but NOT restarted: an injected fault has to last until it is undone.
#
# Environment (all optional):
#   MUNGE_KEY_FILE   the cluster's shared key, owned by munge, mode 0600   [/etc/munge/munge.key]
#   LOG_DIR          directory of the daemons' output                      [/var/log/slurm]
#   START_SECONDS    maximum time until a daemon is ready                  [30]
#   STOP_SECONDS     maximum time until a daemon ends, before SIGKILL      [8]
set -u -o pipefail
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
: "${MUNGE_KEY_FILE:=/etc/munge/munge.key}" "${LOG_DIR:=/var/log/slurm}" "${START_SECONDS:=30}" "${STOP_SECONDS:=8}"
RUN_DIR=/run/llm-bridge # has NAME.pid of each daemon, and `ready` when all daemons are up

say() { printf '%(%FT%T)T %s: %s\n' -1 "$ROLE" "$*" >&2; }
die() { say "$*"; exit 1; }

# daemon_pid NAME: print the pid of a live daemon. Pids are reused, so the process of the pid file must have the daemon's
# name; a zombie does not count.
daemon_pid() {
    local pid comm
    { read -r pid <"$RUN_DIR/$1.pid" && read -r comm <"/proc/$pid/comm"; } 2>/dev/null || return 1
    [[ $comm == "$1" ]] && alive "$pid" && echo "$pid"
}

alive() { grep -q '^State:.[^Z]' "/proc/$1/status" 2>/dev/null; }

# launch NAME COMMAND...: run a foreground-mode daemon in the background, in its own session.
launch() {
    local name=$1
    shift
    setsid "$@" >>"$LOG_DIR/$name.out" 2>&1 </dev/null &
    echo $! >"$RUN_DIR/$name.pid"
}

# wait_until NAME TEST...: wait until TEST succeeds; fail as soon as the process of `launch` has ended. (Its name is not
# checked: on a busy machine setsid executes the daemon late.)
wait_until() {
    local name=$1 pid deadline=$((SECONDS + START_SECONDS))
    shift
    pid=$(<"$RUN_DIR/$name.pid")
    until "$@" 2>/dev/null; do
        if ! alive "$pid"; then
            say "$name ended while starting; the end of $LOG_DIR/$name.out:"
            tail -n 8 "$LOG_DIR/$name.out" >&2
            return 1
        fi
        ((SECONDS < deadline)) || { say "$name is not ready after ${START_SECONDS} s; see $LOG_DIR/$name.*"; return 1; }
        sleep 0.05
    done
}

# port_open PORT: succeed if the port is listened on. Without a connection: slurmctld logs an error for an empty one.
port_open() {
    local hex
    printf -v hex '%04X' "$1"
    grep -qE "^ *[0-9]+: [0-9A-F]+:$hex [0-9A-F]+:0000 0A " /proc/net/tcp /proc/net/tcp6
}

# munged refuses a key that others can read, and other daemons cannot authenticate before it listens.
start_munged() {
    [[ -s $MUNGE_KEY_FILE ]] || die "no munge key at $MUNGE_KEY_FILE: every host of the cluster needs the same one"
    install -d -o munge -g munge -m 755 /run/munge
    rm -f /run/munge/munge.socket.2 # left by a killed munged, it would look like a listening one
    launch munged setpriv --reuid=munge --regid=munge --clear-groups munged --foreground --force \
        --key-file="$MUNGE_KEY_FILE" --socket=/run/munge/munge.socket.2 --pid-file=/run/munge/munged.pid \
        --seed-file=/run/munge/munged.seed --log-file=/run/munge/munged.log
    wait_until munged test -S /run/munge/munge.socket.2
}

start() {
    local pid
    if pid=$(daemon_pid "$1"); then
        say "$1 already runs (pid $pid)"
        return 0
    fi
    "start_$1"
}

# end_daemon SIGNAL NAME: send the signal and wait until the daemon has ended; SIGKILL after STOP_SECONDS.
end_daemon() {
    local pid signal=$1 name=$2 deadline=$((SECONDS + STOP_SECONDS))
    pid=$(daemon_pid "$name") || return 0
    kill "-$signal" "$pid" 2>/dev/null
    while daemon_pid "$name" >/dev/null; do
        ((SECONDS < deadline)) || kill -KILL "$pid" 2>/dev/null
        sleep 0.02
    done
    rm -f "$RUN_DIR/$name.pid"
}

status() {
    local name pid rc=0
    for name in "${DAEMONS[@]}"; do
        if pid=$(daemon_pid "$name"); then echo "$name $pid"; else echo "$name down"; rc=1; fi
    done
    return $rc
}

stop_all() {
    local i
    trap '' TERM INT
    for ((i = ${#DAEMONS[@]} - 1; i >= 0; i--)); do end_daemon TERM "${DAEMONS[i]}"; done
}

# The host's main process. As PID 1 it also reaps orphaned processes.
run_host() {
    local name ended
    mkdir -p "$RUN_DIR" "$LOG_DIR"
    rm -f "$RUN_DIR"/*.pid "$RUN_DIR/ready" # a restarted container keeps its /run
    trap 'stop_all; exit 0' TERM INT
    for name in "${DAEMONS[@]}"; do
        "start_$name" || { stop_all; die "host not started: $name failed"; }
    done
    touch "$RUN_DIR/ready"
    say "ready after ${SECONDS} s"
    sleep infinity & # `wait` needs a child when every daemon has ended
    while :; do
        ended=
        wait -n -p ended
        for name in "${DAEMONS[@]}"; do
            [[ $ended && $(cat "$RUN_DIR/$name.pid" 2>/dev/null) == "$ended" ]] && say "$name (pid $ended) has ended"
        done
    done
}

role_main() {
    local action=${1:-run} daemon=${2:-}
    case $action in
        run) run_host ;;
        status) status ;;
        start | stop | kill | restart)
            [[ " ${DAEMONS[*]} " == *" $daemon "* ]] || die "no daemon '$daemon' here; this host has: ${DAEMONS[*]}"
            case $action in
                start) start "$daemon" ;;
                stop) end_daemon TERM "$daemon" ;;
                kill) end_daemon KILL "$daemon" ;;
                restart) end_daemon TERM "$daemon" && start "$daemon" ;;
            esac
            ;;
        *) die "unknown action '$action'; use: status | start|stop|kill|restart DAEMON" ;;
    esac
}
