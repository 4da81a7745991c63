#!/bin/sh
# The daemon's memory under a kernel that enforces MemoryMax: Debian under user-mode Linux, the packages, a model of
# Gemma 3n E4B's dimensions. Shows that the service keeps to its profile's budget, and that the governor gives
# way before the kernel has to kill.
#   tests/uml.sh [FOLDER]    works in FOLDER (8 GB; default: target/uml); minutes
# Needs root, Debian, 6 GB of memory, as much of it free in /dev/shm, and tests/systemd.sh's container and packages (run
# it before).
set -eu
cd "$(dirname "$0")/.."
folder=${1:-target/uml}
root=${NESTD_TEST_ROOT:-target/nspawn/root}
nestctl=${CARGO_TARGET_DIR:-target}/release/nestctl
memory=5632

problem() {
    echo "uml.sh: $*" >&2
    exit 1
}

missing=
command -v linux.uml >/dev/null || missing="$missing user-mode-linux"
command -v debugfs >/dev/null || missing="$missing e2fsprogs"
if [ -n "$missing" ]; then
    apt-get update -qq
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi
if [ ! -d "$root" ] || ! ls target/debian/nestd_*.deb >/dev/null 2>&1; then
    problem "run tests/systemd.sh first: it makes the container and the packages"
fi
[ -x "$nestctl" ] || problem "$nestctl is missing: run ./test.sh, or cargo build --release --workspace, first"
free=$(df --output=avail -m /dev/shm | tail -n 1)
[ "$free" -ge "$memory" ] ||
    problem "the machine's $memory MiB of memory are a file in /dev/shm, where $((free)) MiB are free"
mkdir -p "$folder/models"
[ -e "$folder/models/e4b.gguf" ] || "$nestctl" model synth --size E4B --out "$folder/models/e4b.gguf"

# The image: the container's root with the packages and what runs in it.
rm -rf "$folder/image" "$folder/disk.img"
cp -a "$root" "$folder/image"
cp target/debian/nestd_*.deb target/debian/nestctl_*.deb "$folder/image/srv/"
unshare --mount sh -euc 'mount -t proc proc "$1/proc"
    chroot "$1" sh -euc "dpkg --install /srv/*.deb >/dev/null; rm /srv/*.deb"' sh "$folder/image"
install -m 755 tests/uml/inside.sh "$folder/image/usr/bin/inside"
cat >"$folder/image/usr/lib/systemd/system/inside.service" <<'UNIT'
[Unit]
Description=What is tested
After=multi-user.target dbus.service nestd.socket
[Service]
Type=oneshot
ExecStart=/usr/bin/inside
ExecStopPost=/usr/bin/systemctl --no-block poweroff
StandardOutput=file:/results
StandardError=inherit
[Install]
WantedBy=default.target
UNIT
systemctl --root="$folder/image" --quiet enable inside.service
systemctl --root="$folder/image" --quiet disable nestd.service
mke2fs -q -F -t ext4 -d "$folder/image" "$folder/disk.img" 1200M
rm -rf "$folder/image"

# Its memory is a file of the host's, which has to be one in memory.
models=$(cd "$folder/models" && pwd)
TMPDIR=/dev/shm timeout 1200 linux.uml mem=${memory}M ubd0="$folder/disk.img" root=/dev/ubda rw \
    init=/lib/systemd/systemd con=null con0=null,fd:2 con1=fd:0,fd:1 ssl=null quiet models="$models" \
    systemd.mask=systemd-udevd.service systemd.mask=systemd-udev-trigger.service </dev/null || true
debugfs -R 'cat /results' "$folder/disk.img" 2>/dev/null | tee "$folder/results"
grep -qx 'all of it holds' "$folder/results"
