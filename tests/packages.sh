#!/bin/sh
# Builds the Debian packages into target/debian and checks them: lintian finds no error and no warning, the version is
# the workspace's, and nestd's man page has every option.
#   tests/packages.sh
# NESTD_BINARIES=FOLDER takes the programs from there, as debian/rules does. Needs debhelper and lintian, which it
# installs when it may (root, Debian).
set -eu
cd "$(dirname "$0")/.."
if [ $# -gt 0 ]; then
    sed -n '2,6s/^# \{0,1\}//p' "$0"
    exit 2
fi

problem() {
    echo "packages.sh: $*" >&2
    exit 1
}

missing=
command -v dh >/dev/null || missing="$missing debhelper"
command -v lintian >/dev/null || missing="$missing lintian"
command -v man >/dev/null || missing="$missing man-db"
command -v make >/dev/null || missing="$missing make"
if [ -n "$missing" ]; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        problem "these are missing:$missing (Debian's names)"
    fi
    apt-get update -qq
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi

version=$(dpkg-parsechangelog --show-field Version)
grep -qxF "version = \"$version\"" Cargo.toml ||
    problem "debian/changelog is at version $version, and Cargo.toml is not"

# What a run that failed has left would be taken for built, and old programs be packed.
debian/rules clean
rm -rf target/debian
debian/rules binary

nestd=debian/nestd/usr/bin/nestd
"$nestd" --help | grep -o -e '--[a-z][a-z-]*' | sort -u | while read -r option; do
    sed 's/\\-/-/g' docs/nestd.1 | grep -qF -e "$option" || problem "docs/nestd.1 does not have $option"
done
[ "$("$nestd" --version)" = "nestd $version" ] || problem "$nestd is not of version $version"

lintian --allow-root --fail-on error,warning --display-info --tag-display-limit 0 target/debian/*.deb
for package in target/debian/*.deb; do
    echo "$(basename "$package"): $(stat -c %s "$package") bytes, installed $(dpkg-deb -f "$package" Installed-Size) KiB"
done
debian/rules clean
