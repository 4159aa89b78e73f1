#!/usr/bin/env bash
# Install what the demo and the tests need: Debian packages (as root), and two Python environments below
# ${LLM_BRIDGE_HOME:-/var/tmp/llm-bridge}. Installed packages and valid environments stay unchanged; nothing is started.
#
# usage: setup.sh [airflow|browser]   "airflow": only the environment of Airflow and the development tools, no root
#                                     "browser": everything, and what make browser-test needs
#
#   LLM_BRIDGE_HOME         directory of the environments; unprivileged users need search permission on it
#   LLM_BRIDGE_PYTHON       Python 3.11 to 3.13 for Airflow (default: the first one found)
#   LLM_BRIDGE_TORCH_INDEX  additional package index with CPU-only builds of torch: without it pip may install
#                           the CUDA libraries, several GB that are not used here
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
umask 022 # jobs run as an unprivileged user, which must be able to read the environment

mapfile -t PACKAGES < <(grep -v '^#' testing/local_cluster/packages.txt)
PACKAGES+=(postgresql) # Airflow's database in tests/chaos
PACKAGES+=(fish tcsh) # login shells of make sites-report
home=${LLM_BRIDGE_HOME:-/var/tmp/llm-bridge}
logs=$home/logs
policy=/usr/sbin/policy-rc.d
policy_mark="# written by llm-bridge's setup.sh while it runs"
jobs=()

fail() {
    printf 'setup: %s\n' "$*" >&2
    exit 1
}

seconds_since() { printf '%d.%d' $((($(now_ms) - $1) / 1000)) $((($(now_ms) - $1) % 1000 / 100)); }

now_ms() { printf '%s' "$((${EPOCHREALTIME/[.,]/} / 1000))"; }

# step NAME LOG COMMAND...: run a command with its output in a log; print one line on success, the log's end on failure.
# Call it as a plain command: in `step ... || ...` bash ignores `set -e` inside the command, too.
step() {
    local name=$1 log=$2 begin
    shift 2
    begin=$(now_ms)
    # In the background, because bash ignores `set -e` directly inside an `if`, too. Bash makes background commands
    # ignore SIGINT; the trap restores it, so that Ctrl-C ends the command.
    (trap - INT; "$@") </dev/null >"$log" 2>&1 &
    if wait $!; then
        printf 'setup: %-16s installed in %s s\n' "$name" "$(seconds_since "$begin")"
    else
        {
            printf 'setup: cannot install %s. The last lines of %s:\n' "$name" "$log"
            tail -n 15 "$log" | sed 's/^/    /'
            printf 'setup: fix the cause and run "make setup" again; finished steps are not repeated.\n'
        } >&2
        return 1
    fi
}

# ---- Debian packages

missing_packages() {
    local package status
    for package in "${PACKAGES[@]}"; do
        status=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null) || true
        [ "$status" = installed ] || printf '%s\n' "$package"
    done
}

# Installing must not start daemons: the local cluster starts its own, in namespaces. Debian's policy-rc.d forbids it.
# An existing policy stays unchanged.
forbid_starting() {
    [ -e "$policy" ] && return
    printf '#!/bin/sh\n%s\nexit 101\n' "$policy_mark" >"$policy"
    chmod 755 "$policy"
}

allow_starting() {
    # Identified by its mark: this also removes the policy of a killed run, and never another one.
    if [ -f "$policy" ] && grep -qxF "$policy_mark" "$policy"; then rm -f "$policy"; fi
}

install_packages() {
    export DEBIAN_FRONTEND=noninteractive
    apt-get -o Acquire::Retries=3 update
    # --no-upgrade: upgrades of installed packages are up to the machine's administrator.
    apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends --no-upgrade "$@"
}

system_packages() {
    local missing
    command -v dpkg-query >/dev/null || fail "no dpkg: make demo and make test need Debian or Ubuntu"
    mapfile -t missing < <(missing_packages)
    [ ${#missing[@]} -eq 0 ] && return
    if [ "$(id -u)" != 0 ]; then
        fail "not root, and these packages are missing. Install them, then run \"make setup\" again:
    sudo apt-get install -y --no-install-recommends ${missing[*]}"
    fi
    trap allow_starting EXIT
    forbid_starting
    step "system packages" "$logs/apt.log" install_packages "${missing[@]}"
    allow_starting
    trap - EXIT
}

# ---- Python environments

# The stamp in an environment is the fingerprint of its requirements; with any other stamp, pip runs again.
fingerprint() { cat "$@" | sha256sum | cut -d' ' -f1; }

up_to_date() { [ "$(cat "$home/$1/.llm-bridge-setup" 2>/dev/null)" = "$2" ]; }

# make_venv PYTHON DIRECTORY: make a virtual environment; replace one that does not work (its Python was removed).
make_venv() {
    "$2/bin/python" -m pip --version 2>/dev/null || "$1" -m venv --clear "$2"
}

pip_install() {
    local directory=$1
    shift
    "$directory/bin/python" -m pip install --no-input --disable-pip-version-check "$@"
}

airflow_python() {
    local candidate
    for candidate in ${LLM_BRIDGE_PYTHON:+"$LLM_BRIDGE_PYTHON"} python3.11 python3.12 python3.13 /usr/bin/python3 python3; do
        # Existence is not enough: version managers leave commands that only print an error.
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
            printf '%s' "$candidate"
            return
        fi
    done
    return 1
}

airflow_env() {
    make_venv "$1" "$home/airflow-env"
    pip_install "$home/airflow-env" -r requirements.txt -r requirements-dev.txt \
        -c constraints/airflow.txt
    printf '%s' "$2" >"$home/airflow-env/.llm-bridge-setup"
}

cluster_env() {
    # Not the first `python3` in PATH: it may be below /root, which the jobs' unprivileged user cannot enter.
    make_venv /usr/bin/python3 "$home/cluster-env"
    pip_install "$home/cluster-env" -r plugins/llm_bridge/pins/requirements-cluster.txt -c constraints/cluster-cpu.txt \
        ${LLM_BRIDGE_TORCH_INDEX:+--extra-index-url "$LLM_BRIDGE_TORCH_INDEX"}
    # From a copy: the build writes files beside the sources.
    local copy
    copy=$(mktemp -d)
    cp -r testing/local_cluster/verl_cpu "$copy/"
    pip_install "$home/cluster-env" --no-deps --no-build-isolation --force-reinstall "$copy/verl_cpu"
    rm -rf "$copy"
    printf '%s' "$1" >"$home/cluster-env/.llm-bridge-setup"
}

browser_driver() {
    pip_install "$home/airflow-env" -r requirements-browser.txt -c constraints/airflow.txt
    printf '%s' "$1" >"$home/airflow-env/.llm-bridge-browser"
}

environments() {
    local airflow cluster python verl_cpu
    mapfile -t verl_cpu < <(find testing/local_cluster/verl_cpu -name '*.py' -o -name '*.toml' | LC_ALL=C sort)
    airflow=$(fingerprint requirements.txt requirements-dev.txt constraints/airflow.txt)
    cluster=$(fingerprint plugins/llm_bridge/pins/requirements-cluster.txt constraints/cluster-cpu.txt "${verl_cpu[@]}")
    if ! up_to_date airflow-env "$airflow"; then
        python=$(airflow_python) || fail "no Python 3.11, 3.12 or 3.13 with venv found: install one and set LLM_BRIDGE_PYTHON to it"
        (trap - INT; step airflow-env "$logs/airflow-env.log" airflow_env "$python" "$airflow") &
        jobs+=($!)
    fi
    if [ "$1" != airflow ] && ! up_to_date cluster-env "$cluster"; then
        (trap - INT; step cluster-env "$logs/cluster-env.log" cluster_env "$cluster") &
        jobs+=($!)
    fi
    local job failed=0
    for job in ${jobs[@]+"${jobs[@]}"}; do wait "$job" || failed=1; done
    [ $failed = 0 ] || exit 1
}

# ---- main

mkdir -p "$logs" 2>/dev/null || fail "cannot write to $home: run \"make setup\" as root, or set LLM_BRIDGE_HOME to a writable directory"
exec 9>"$home/setup.lock"
flock 9 # a second `make` waits for the first
begin=$(now_ms)
what=${1:-all}
if [ "$what" = browser ]; then PACKAGES+=(chromium fonts-noto-core); fi
if [ "$what" != airflow ]; then system_packages; fi
environments "$what"
if [ "$what" = browser ]; then
    driver=$(fingerprint requirements-browser.txt)
    if [ "$(cat "$home/airflow-env/.llm-bridge-browser" 2>/dev/null)" != "$driver" ]; then
        step browser-driver "$logs/browser-driver.log" browser_driver "$driver"
    fi
fi
printf 'setup: ready in %s s (%s)\n' "$(seconds_since "$begin")" "$home"
