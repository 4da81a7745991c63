#!/bin/sh
# Cross-builds the workspace and its tests for aarch64 in a Debian chroot, and runs them under qemu-user: the unit
# tests, the kernels on a CPU for each set of them, and the daemon end to end with the demo model.
#   tests/aarch64.sh [--no-mistralrs] [--models] [FOLDER]
#                     --no-mistralrs: without that engine (minutes instead of half an hour);
#                     --models: the demo model's answers and logits too (a quarter of an hour);
#                     FOLDER: the chroot and what cargo builds, 5 GB (default: target/aarch64)
# Needs root, Debian's mmdebstrap (its packages come from $DEBIAN_MIRROR, or from where apt has this machine's), cargo
# with a registry in reach, and Linux 6.7, where a namespace has its own binary formats. Nothing in the chroot sees
# the network.
set -eu
cd "$(dirname "$0")/.."
features=
models=
while [ $# -gt 0 ]; do
    case $1 in
    --no-mistralrs) features="--no-default-features --features nestd/tcp,nestd-tests/tcp" ;;
    --models) models=1 ;;
    -*)
        sed -n '2,10s/^# \{0,1\}//p' "$0"
        exit 2
        ;;
    *) break ;;
    esac
    shift
done
folder=${1:-target/aarch64}
mkdir -p "$folder/target"
folder=$(cd "$folder" && pwd)
root=$folder/root

missing=
command -v mmdebstrap >/dev/null || missing="$missing mmdebstrap"
command -v ip >/dev/null || missing="$missing iproute2"
if [ -n "$missing" ]; then
    apt-get update -qq
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi

# Rust is that of trixie's backports, whose standard library is there for both; what the tests start is this machine's.
suite=trixie
packages=rustc/$suite-backports,cargo/$suite-backports,libstd-rust-dev/$suite-backports,\
libstd-rust-dev:arm64/$suite-backports,gcc-aarch64-linux-gnu,g++-aarch64-linux-gnu,libc6-dev-arm64-cross,gcc,libc6-dev,\
pkgconf,ca-certificates,qemu-user,dbus-daemon,python3-dbusmock,openssl
# A root is kept for as long as what it is made of is the same.
if [ "$(cat "$root.packages" 2>/dev/null)" != "$suite $packages" ]; then
    # The first address of the first line.
    mirror=${DEBIAN_MIRROR:-$(sed -n 's/^URIs:[[:space:]]*\([^[:space:]]*\).*/\1/p' \
        /etc/apt/sources.list.d/debian.sources 2>/dev/null | head -n 1)}
    if [ -z "$mirror" ]; then
        echo "aarch64.sh: set DEBIAN_MIRROR to the address of a mirror of Debian" >&2
        exit 1
    fi
    # The list is written last: one that was not finished is not taken for one that was.
    rm -rf "$root" "$root.packages"
    mmdebstrap --quiet --variant=apt --architectures=amd64,arm64 --include="$packages" \
        "$suite" "$root" "deb $mirror $suite main" "deb $mirror $suite-backports main"
    mkdir -p "$root/mnt/nestd" "$root/mnt/target" "$root/mnt/cargo/registry"
    echo "$suite $packages" >"$root.packages"
fi

# The crates are fetched out here.
cargo fetch --locked --quiet
registry=${CARGO_HOME:-$HOME/.cargo}/registry

# In namespaces of its own, so that nothing stays mounted, and where programs for aarch64 run as if they were this
# machine's. Unoptimized, the assembler of candle's gemm crates is refused ("instruction requires: fullfp16").
inside() {
    unshare --user --map-root-user --mount --net sh -euc '
        mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
        elf=":aarch64:M::\\x7fELF\\x02\\x01\\x01\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x02\\x00\\xb7\\x00"
        mask="\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\x00\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\xfe\\xff\\xff\\xff"
        printf %s "$elf:$mask:$1/usr/bin/qemu-aarch64:F" >/proc/sys/fs/binfmt_misc/register
        ip link set lo up
        mount --rbind "$2" "$1/mnt/nestd"
        mount -o remount,bind,ro "$1/mnt/nestd"
        mount --rbind "$3" "$1/mnt/target"
        mount --rbind "$4" "$1/mnt/cargo/registry"
        for part in proc sys dev; do mount --rbind "/$part" "$1/$part"; done
        shift 4
        exec chroot "$@"' sh "$root" "$PWD" "$folder/target" "$registry" "$root" env -i \
        PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root CARGO_HOME=/mnt/cargo CARGO_TARGET_DIR=/mnt/target \
        CARGO_PROFILE_DEV_OPT_LEVEL=1 CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc "$@"
}

# CPU, the kernels that it has, the slowest first, and what runs on it. One selection of packages and features
# everywhere, so that everything is built once.
run() {
    cpu=$1 kernels=$2
    shift 2
    echo "== $cpu ($kernels): $*"
    # shellcheck disable=SC2086
    inside "QEMU_CPU=$cpu" "EXPECTED_KERNELS=$kernels" sh -c 'cd /mnt/nestd && exec "$@"' sh \
        cargo test --locked --offline --quiet --target aarch64-unknown-linux-gnu --workspace $features "$@"
}

echo "== what is built"
inside sh -c 'cd /mnt/nestd && exec "$@"' sh cargo build --locked --offline --target aarch64-unknown-linux-gnu \
    --workspace --tests --bins $features
# Reading ahead is not among what qemu-user passes on to the system.
if [ "$models" ]; then
    run max plain,neon,dotprod,i8mm --test model -- --skip ahead
fi
run max plain,neon,dotprod,i8mm --lib --bins --test kernels
run cortex-a76 plain,neon,dotprod --test kernels
run cortex-a53 plain,neon --test kernels
run max plain,neon,dotprod,i8mm --test e2e -- elastic::the_main_job elastic::answers_are_right
