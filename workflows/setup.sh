#!/usr/bin/env bash
# Make .venv in this checkout, with the project in it, and look for the programs it needs.
#
#   bash workflows/setup.sh EXTRA        EXTRA: an extra of pyproject.toml, "all" or "dev"
#
# What root can install with apt is installed; otherwise the script says what to install. PYTHON
# names an interpreter to prefer. Says one line for each step; logs of pip and apt are shown only
# when they fail.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$root/.venv
stamp=$venv/.installed
extra=${1:?an extra of pyproject.toml, all or dev}
log=$(mktemp)
# openssh-server and sbin programs are not on everyone's PATH.
PATH=$PATH:/usr/sbin:/usr/local/sbin:/sbin
minimum="3.11"
policy=/usr/sbin/policy-rc.d
missing=()

say() { printf '%-12s %s\n' "$1" "$2"; }

fail() {
    say "$1" "$2" >&2
    [ -s "$log" ] && tail -n 30 "$log" >&2
    exit 1
}

cleanup() {
    rm -f "$log"
    [ -z "${policy_made:-}" ] || rm -f "$policy"
    [ -z "${policy_saved:-}" ] || mv -f "$policy_saved" "$policy"
}
trap cleanup EXIT
trap 'exit 130' INT TERM HUP

main() {
    find_ssh
    find_lftp
    venv_is_sound || find_venv_module
    [ ${#missing[@]} = 0 ] || fail install "$(hint "${missing[@]}")"
    make_venv
    install_project
    compile_project
}

# What is missing is named at once, that one command may bring it all.
lacks() { # STEP TEXT PACKAGE
    say "$1" "$2" >&2
    missing+=("$3")
}

find_ssh() {
    if can_apt; then
        has ssh && has sftp || apt_install openssh-client || true
        has sshd || install_sshd || true
    fi
    has ssh && has sftp || lacks ssh "OpenSSH is not installed" openssh-client
    if has sshd; then
        say sshd "$(command -v sshd)"
    else
        lacks sshd "the embedded server needs OpenSSH's sshd" openssh-server
    fi
}

# Only the program is wanted: no server is started, now or with the system.
install_sshd() {
    apt_install openssh-server || return
    if [ -d /run/systemd/system ]; then
        systemctl -q disable ssh.service ssh.socket >>"$log" 2>&1 || true
    fi
}

find_lftp() {
    if ! has lftp && can_apt; then
        apt_install lftp || true
    fi
    if has lftp; then
        say lftp "$(command -v lftp)"
    else
        say lftp "not installed, the SFTP transport serves ($(hint lftp))"
    fi
}

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.14 python3.13 python3.12 python3.11; do
        if "$candidate" -c "import sys; sys.exit(sys.version_info < (${minimum/./, }))" \
            >/dev/null 2>&1; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

# Sets `python`, which makes the environment.
find_venv_module() {
    local version
    python=$(find_python) ||
        fail python "none here is $minimum or newer; install one and name it: PYTHON=/path/to/python"
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    # Debian's python3 comes without ensurepip, which only its python3-venv brings.
    if ! can_make_venvs && can_apt; then
        apt_install "python$version-venv" || apt_install python3-venv || true
    fi
    can_make_venvs ||
        lacks python "$python cannot make virtual environments" "python$version-venv"
}

can_make_venvs() { "$python" -c 'import venv; from ensurepip import version' 2>/dev/null; }

make_venv() {
    if venv_is_sound; then
        say python "$("$venv/bin/python" --version) in .venv, as before"
        return
    fi
    "$python" -m venv --clear "$venv" >>"$log" 2>&1 || fail python "making .venv failed"
    say python "$("$venv/bin/python" --version) in .venv, new"
}

# A virtual environment that was copied or moved has scripts that start another interpreter.
venv_is_sound() {
    local check="import sys, pip; sys.exit(sys.version_info < (${minimum/./, }))"
    [ -x "$venv/bin/python" ] && "$venv/bin/python" -c "$check" 2>>"$log" &&
        [ -f "$venv/bin/pip" ] && head -n 2 "$venv/bin/pip" | grep -qF "$venv/bin/python"
}

install_project() {
    local wanted started=$SECONDS
    wanted="$extra $(cksum <"$root/pyproject.toml")"
    if [ -f "$stamp" ] && grep -qxF -e "$wanted" -e "dev ${wanted#* }" "$stamp" &&
        "$venv/bin/python" -c 'import pyremotedata_core' 2>>"$log"; then
        say packages "pyremotedata-suite[$extra], as before"
        return
    fi
    say packages "installing pyremotedata-suite[$extra] ..."
    rm -f "$stamp"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        --editable "$root[$extra]" >"$log" 2>&1 || fail packages "pip install failed:"
    echo "$wanted" >"$stamp"
    say packages "pyremotedata-suite[$extra] installed in $((SECONDS - started)) s"
}

# As pip does for what it copies: else each command compiles its modules anew wherever
# PYTHONDONTWRITEBYTECODE is set, as in many containers.
compile_project() {
    "$venv/bin/python" -m compileall -q "$root"/pyremotedata_core "$root"/dask_plugin \
        "$root"/snakemake_storage_plugin >>"$log" 2>&1 || true # a checkout that is read only
}

has() { [ -x "$(command -v "$1")" ]; }

can_apt() { [ "$(id -u)" = 0 ] && has apt-get; }

hint() {
    if has apt-get; then
        echo "sudo apt-get install --no-install-recommends $*"
    else
        echo "install $* with your system's package manager"
    fi
}

apt_install() {
    say packages "installing $* ..."
    start_no_daemons
    if ! apt_get install "$@"; then
        # The lists of a fresh system are empty, those of an old one name packages that are gone.
        apt_get update && apt_get install "$@" || {
            say packages "apt could not install $*"
            return 1
        }
    fi
}

apt_get() {
    DEBIAN_FRONTEND=noninteractive apt-get -y -qq --no-install-recommends \
        -o DPkg::Lock::Timeout=120 "$@" >>"$log" 2>&1 </dev/null
}

# Debian asks this script before a package starts its daemon; 101 forbids it.
start_no_daemons() {
    [ -z "${policy_made:-}" ] || return 0
    if [ -e "$policy" ] || [ -L "$policy" ]; then
        mv -f "$policy" "$policy.before-setup"
        policy_saved=$policy.before-setup
    fi
    policy_made=yes
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
}

main
