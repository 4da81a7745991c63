#!/bin/sh
# Installs the packages on a real systemd, a Debian in a container, and tests them there.
#   tests/systemd.sh [TEST]    all of them, or those whose names hold TEST
# Needs root, Debian with its mirror in reach (or $DEBIAN_MIRROR), and control groups of its own. The container's root
# (200 MB, a minute) is made in target/nspawn, once for a list of packages.
set -eu
cd "$(dirname "$0")/.."

missing=
command -v mmdebstrap >/dev/null || missing="$missing mmdebstrap"
command -v systemd-nspawn >/dev/null || missing="$missing systemd-container"
# What the tests call on this machine.
command -v openssl >/dev/null || missing="$missing openssl"
command -v python3 >/dev/null || missing="$missing python3"
if [ -n "$missing" ]; then
    apt-get update -qq
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi

root=target/nspawn/root
suite=trixie
packages=systemd,systemd-sysv,dbus,polkitd,udev,libpam-systemd,procps
# A root is kept for as long as what it is made of is the same.
if [ "$(cat "$root.packages" 2>/dev/null)" != "$suite $packages" ]; then
    # The first address of the first line.
    mirror=${DEBIAN_MIRROR:-$(sed -n 's/^URIs:[[:space:]]*\([^[:space:]]*\).*/\1/p' \
        /etc/apt/sources.list.d/debian.sources 2>/dev/null | head -n 1)}
    if [ -z "$mirror" ]; then
        echo "systemd.sh: set DEBIAN_MIRROR to the address of a mirror of Debian" >&2
        exit 1
    fi
    mkdir -p target/nspawn
    # The list is written last: one that was not finished is not taken for one that was.
    rm -rf "$root" "$root.packages"
    mmdebstrap --quiet --variant=minbase --include="$packages" "$suite" "$root" "$mirror"
    echo "$suite $packages" >"$root.packages"
fi

tests/packages.sh
# Two machines at a time: they mostly wait.
exec cargo test --release --workspace --test systemd -- --ignored --test-threads 2 "$@"
