#!/bin/sh
# Cross-builds the tests of nestd-elastic for aarch64 in a Debian chroot, and runs them under qemu-user with a
# CPU for each set of kernels.
#   tests/aarch64.sh [--models] [CHROOT [TARGET]]
#                        CHROOT is made if it is not there (2 GB; minutes); TARGET is where cargo builds (default:
#                        CHROOT/target); --models: the demo model's answers and logits too (a quarter of an hour)
# Needs root, Debian's mmdebstrap (its packages come from $DEBIAN_MIRROR, or from where apt has this machine's),
# and cargo with a registry in reach. Nothing of the chroot sees the network.
set -eu
cd "$(dirname "$0")/.."
models=
if [ "${1-}" = --models ]; then
    models=1
    shift
fi
chroot=${1:-/var/tmp/nestd-aarch64}
target=${2:-$chroot/target}

if [ ! -x "$chroot/usr/bin/qemu-aarch64" ]; then
    mirror=${DEBIAN_MIRROR:-$(sed -n 's/^URIs: *//p' /etc/apt/sources.list.d/debian.sources 2>/dev/null | head -n 1)}
    if [ -z "$mirror" ]; then
        echo "aarch64.sh: set DEBIAN_MIRROR to the address of a mirror of Debian" >&2
        exit 1
    fi
    # Rust of trixie's backports, whose standard library is there for both.
    mmdebstrap --variant=apt --architectures=amd64,arm64 --include=rustc/trixie-backports,cargo/trixie-backports,\
libstd-rust-dev/trixie-backports,libstd-rust-dev:arm64/trixie-backports,gcc-aarch64-linux-gnu,libc6-dev-arm64-cross,\
gcc,libc6-dev,pkgconf,ca-certificates,qemu-user trixie "$chroot" \
        "deb $mirror trixie main" "deb $mirror trixie-backports main"
fi

# The crates are fetched out here.
cargo fetch --locked --quiet
registry=${CARGO_HOME:-$HOME/.cargo}/registry
mkdir -p "$target" "$chroot/mnt/nestd" "$chroot/mnt/target" "$chroot/mnt/cargo/registry"

# In a mount namespace of its own, so that nothing stays mounted. Unoptimized, the assembler of candle's gemm crates
# is refused ("instruction requires: fullfp16").
inside() {
    unshare --mount --net sh -euc '
        mount --bind "$2" "$1/mnt/nestd"
        mount -o remount,bind,ro "$1/mnt/nestd"
        mount --bind "$3" "$1/mnt/target"
        mount --bind "$4" "$1/mnt/cargo/registry"
        mount -t proc proc "$1/proc"
        mount --bind /dev "$1/dev"
        shift 4
        exec chroot "$@"' sh "$chroot" "$PWD" "$target" "$registry" "$chroot" env -i \
        PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root CARGO_HOME=/mnt/cargo CARGO_TARGET_DIR=/mnt/target \
        CARGO_PROFILE_DEV_OPT_LEVEL=1 CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc "$@"
}

# CPU, the kernels that it has, the slowest first, and what runs on it.
run() {
    cpu=$1 kernels=$2
    shift 2
    echo "== $cpu: $kernels"
    inside "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER=qemu-aarch64 -cpu $cpu -L /usr/aarch64-linux-gnu" \
        "NESTD_TEST_KERNELS=$kernels" sh -c 'cd /mnt/nestd && exec "$@"' sh \
        cargo test --locked --offline --quiet --target aarch64-unknown-linux-gnu -p nestd-elastic "$@"
}

# Reading ahead is not among what qemu-user passes on to the system.
if [ "$models" ]; then
    run max plain,neon,dotprod,i8mm --test model -- --skip ahead
fi
run max plain,neon,dotprod,i8mm --lib --test kernels
run cortex-a76 plain,neon,dotprod --test kernels
run cortex-a53 plain,neon --test kernels
