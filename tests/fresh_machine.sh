#!/usr/bin/env bash
# The README's two commands on a machine that has just been installed: git and Python, no more.
#
#   sudo bash tests/fresh_machine.sh [OPTIONS] [-- ARGUMENTS OF tests/run.sh]
#
#   --suite NAME           the release (bookworm); of Debian or Ubuntu
#   --mirror URL           where its packages are; default: as in this machine's apt
#   --as user|root         who runs them (both, on a machine each)
#   --lftp with|without    whether lftp can be had (both, on a machine each)
#   --quickstart           run workflows/quickstart.sh only, not tests/run.sh
#   --share DIRECTORY      show this folder inside, read-only: a package index, say
#
# What is committed is cloned and run. A user who lacks a program does as the scripts say, with
# sudo; root finds it installed. Each machine is a directory with processes and mounts of its own
# (chroot, namespaces), removed in the end. The network is this machine's, and so are the settings
# of apt and pip. Takes root, debootstrap, and 3 GiB in TMPDIR.
set -euo pipefail

PATH=$PATH:/usr/sbin:/sbin
script=$(readlink -f "${BASH_SOURCE[0]}")
checkout=$(dirname "$(dirname "$script")")
suite=bookworm mirror='' accounts='user root' lftps='without with' quickstart_only='' shares=()
RUN_TIMEOUT_S=5400
# For a machine's own run, in its namespaces; see `in_machine`.
machine=${FRESH_MACHINE:-}

usage() {
    sed -n '2,/^set /{s/^# \{0,1\}//p}' "$script"
    exit "$1"
}

one_of() { # VALUE ALLOWED...
    local value=$1 allowed
    shift
    for allowed in "$@"; do [ "$value" != "$allowed" ] || return 0; done
    printf '%s: not one of: %s\n' "$value" "$*" >&2
    exit 2
}

main() {
    while [ $# -gt 0 ]; do
        case $1 in
            --suite) suite=${2:?}; shift ;;
            --mirror) mirror=${2:?}; shift ;;
            --as) accounts=${2:?}; one_of "$2" user root; shift ;;
            --lftp) lftps=${2:?}; one_of "$2" with without; shift ;;
            --share) shares+=("$(readlink -e "${2:?}")"); shift ;;
            --quickstart) quickstart_only=yes ;;
            -h | --help) usage 0 ;;
            --) shift; break ;;
            *) usage 2 >&2 ;;
        esac
        shift
    done
    [ "$(id -u)" = 0 ] || { echo "fresh_machine: only root can make one: use sudo" >&2; exit 1; }
    command -v debootstrap >/dev/null ||
        { echo "fresh_machine: sudo apt-get install --no-install-recommends debootstrap" >&2; exit 1; }
    [ -z "$(git_here status --porcelain)" ] || echo "note: changes that are not committed stay out"

    work=$(readlink -f "$(mktemp -d -t fresh-machine.XXXXXX)")
    trap clean_up EXIT
    trap 'exit 130' INT TERM HUP
    chmod 755 "$work"
    git_here bundle create --quiet "$work/checkout.bundle" HEAD
    printf 'building %s\n' "$suite"
    in_machine "$work/base" build_base || die
    run_cases "$@"
}

# Every case on a copy of the fresh machine; a table, and status 1 if any failed.
run_cases() {
    local who lftp failed=''
    for who in $accounts; do
        for lftp in $lftps; do
            cp -a "$work/base" "$work/machine"
            in_machine "$work/machine" run_case "$who" "$lftp" "$@" || failed=yes
            rm -rf --one-file-system "$work/machine"
        done
    done
    printf '\n'
    cat "$work/table" 2>/dev/null
    [ -z "$failed" ] || exit 1
}

# Run a function of this script with mounts and processes of its own, which end with it.
in_machine() { # DIRECTORY FUNCTION ARGUMENTS...
    FRESH_MACHINE=$1 FRESH_STATE=$(declare -p suite mirror work quickstart_only shares) \
        unshare --mount --pid --mount-proc --fork --kill-child "$BASH" "$script" "${@:2}" &
    namespaces=$!
    local status=0
    wait "$namespaces" || status=$?
    namespaces=''
    return "$status"
}

clean_up() {
    if [ -n "${namespaces:-}" ]; then kill -KILL "$namespaces" 2>/dev/null || true; fi
    # The mounts went with the namespaces: nothing of this machine is below the directory. The
    # last processes may need a moment more.
    rm -rf --one-file-system "$work" 2>/dev/null || { sleep 2; rm -rf --one-file-system "$work"; }
}

build_base() {
    local components=main family=''
    mirror=${mirror:-$(mirror_of_apt)}
    mirror=${mirror:-http://deb.debian.org/debian}
    # Debian's debootstrap does not know all of Ubuntu's releases by name; one script fits them all.
    if wget -qO- "$mirror/dists/$suite/Release" | grep -x 'Origin: Ubuntu' >/dev/null; then
        components=main,universe family=gutsy
    fi
    mkdir "$machine"
    debootstrap --variant=minbase --components="$components" \
        --include=ca-certificates,git,python3 "$suite" "$machine" "$mirror" \
        ${family:+"$family"} >"$work/log" 2>&1
    # A fresh system knows of no packages until somebody asks.
    rm -rf "$machine"/var/lib/apt/lists/* "$machine"/var/cache/apt/*
    take_settings
    chroot "$machine" useradd --create-home --shell /bin/bash user
}

mirror_of_apt() {
    # shellcheck disable=SC2016 # apt's own variable
    apt-get indextargets --format '$(REPO_URI)' 'Origin: Debian' 'Label: Debian' \
        'Created-By: Packages' 2>/dev/null | sed -n 1p || true
}

# How to reach packages from here: names, certificates, proxies, indexes.
take_settings() {
    local file
    for file in /etc/resolv.conf /etc/hosts /etc/ssl/certs/ca-certificates.crt; do
        [ ! -e "$file" ] || cp --remove-destination -L "$file" "$machine$file"
    done
    apt-config dump | grep -E '^Acquire::(https?|Check-|Retries|ForceIPv)' \
        >"$machine/etc/apt/apt.conf.d/99from-the-host" || true
    mkdir -p "$machine/etc/xdg/pip"
    # Of two global files of pip's the second wins, as the user's does here.
    [ ! -e /etc/pip.conf ] || cp -L /etc/pip.conf "$machine/etc/xdg/pip/pip.conf"
    for file in ~/.pip/pip.conf "${XDG_CONFIG_HOME:-$HOME/.config}/pip/pip.conf"; do
        [ ! -e "$file" ] || cp -L "$file" "$machine/etc/pip.conf"
    done
    # An account of the machine reads them, whatever the modes here.
    chmod -R a+rX "$machine/etc/xdg/pip" "$machine"/etc/{hosts,resolv.conf,ssl/certs}
    [ ! -e "$machine/etc/pip.conf" ] || chmod a+r "$machine/etc/pip.conf"
}

run_case() { # user|root with|without ARGUMENTS OF tests/run.sh...
    who=$1
    local lftp=$2 python label failed=''
    shift 2
    mount_inside
    if [ "$lftp" = with ]; then
        apt_inside install lftp || die
    else
        printf 'Package: lftp\nPin: release *\nPin-Priority: -1\n' \
            >"$machine/etc/apt/preferences.d/no-lftp"
    fi
    install -m 644 "$work/checkout.bundle" "$machine/srv/"
    inside "$who" . git -c advice.detachedHead=false clone --quiet /srv/checkout.bundle checkout
    python=$(inside "$who" . python3 --version)
    label="$suite, $python, $who, $lftp lftp"
    try "$label" workflows/quickstart.sh || failed=yes
    [ -n "$quickstart_only" ] || try "$label" tests/run.sh "$@" || failed=yes
    [ -z "$failed" ]
}

mount_inside() {
    local share
    mount -t proc proc "$machine/proc"
    mount --rbind /dev "$machine/dev"
    mount -t tmpfs -o mode=1777 tmpfs "$machine/dev/shm"
    for share in ${shares[@]+"${shares[@]}"}; do
        mkdir -p "$machine$share"
        mount --bind "$share" "$machine$share"
        mount -o remount,bind,ro "$machine$share"
    done
}

# Run one of the two commands, note in the table what came of it.
try() { # LABEL SCRIPT ARGUMENTS...
    local label=$1 command=$2 started=$SECONDS result=passed
    shift
    printf '\n== %s: %s\n' "$label" "$*"
    { follow bash "$@" && nothing_left; } || result=FAILED
    printf '%-46s %-24s %s, %s s\n' "$label" "$command" "$result" $((SECONDS - started)) |
        tee -a "$work/table"
    [ "$result" = passed ]
}

# Run a command in the clone; a user told to install something does, and runs it again.
follow() {
    local advice before=''
    until inside "$who" checkout "$@" 2>&1 | tee "$work/log"; do
        # All goes on without lftp: its hint is not why the command failed.
        advice=$(grep -v '^lftp ' "$work/log" | grep -oE 'sudo apt-get install [a-z0-9. -]+' |
            tail -n 1)
        [ -n "$advice" ] && [ "$advice" != "$before" ] && [ "$who" != root ] || return 1
        before=$advice
        printf -- '-- %s\n' "$advice"
        # shellcheck disable=SC2086 # the words of a command line
        apt_inside ${advice#sudo apt-get } || die
    done
}

# Say what a finished command has left: processes, files, a changed checkout. What pytest, Dask and
# the product itself keep for the next run may stay, and what a Snakemake leaves that a test kills.
nothing_left() {
    local process left
    left=$(
        for process in /proc/[0-9]*; do
            [ "$(readlink "$process/root")" != "$machine" ] || tr '\0' ' ' <"$process/cmdline"
        done
        inside "$who" checkout git status --porcelain
        find "$machine"/{tmp,var/tmp} "$machine"/usr/sbin/policy-rc.d* -maxdepth 1 \
            ! -path "$machine/tmp" ! -path "$machine/var/tmp" ! -name 'pytest-of-*' \
            ! -name dask-scratch-space ! -name 'pyremotedata-[0-9]*' \
            ! -name 'snakemake????????' 2>/dev/null || true
    )
    [ -z "$left" ] || { printf 'left behind: %s\n' "$left"; return 1; }
}

# Run a command as an account, from a directory below its home, with nothing of our environment
# but how to reach packages.
inside() { # user|root DIRECTORY COMMAND...
    local home=/root path=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
    local account=$1 directory=$2 name reach=()
    shift 2
    [ "$account" = root ] || { home=/home/$account; path=/usr/local/bin:/usr/bin:/bin; }
    for name in $(compgen -e | grep -iE '^(pip_.*|[a-z]+_proxy|ssl_cert_file)$'); do
        reach+=("$name=${!name}")
    done
    # shellcheck disable=SC2016 # the inner shell's
    timeout --kill-after=10 "$RUN_TIMEOUT_S" chroot --userspec="$account:$account" "$machine" \
        env -i ${reach[@]+"${reach[@]}"} HOME="$home" USER="$account" LOGNAME="$account" \
        PATH="$path" SHELL=/bin/bash bash -c 'cd ~/"$0" && exec "$@"' "$directory" "$@" </dev/null
}

apt_inside() {
    { inside root . apt-get -qq update && inside root . env DEBIAN_FRONTEND=noninteractive \
        apt-get -y -qq --no-install-recommends "$@"; } >"$work/log" 2>&1
}

git_here() { git -c safe.directory="$checkout" -C "$checkout" "$@"; }

die() {
    tail -n 30 "$work/log" >&2
    exit 1
}

if [ -n "$machine" ]; then
    eval "$FRESH_STATE"
    "$@"
else
    main "$@"
fi
