#!/bin/sh
# Runs all tests: builds the workspace, and has what the end-to-end tests need installed when it may.
#   ./test.sh            everything
#   ./test.sh --no-mistralrs   without the engine mistralrs and its tests, unoptimized (little more than a
#                        minute instead of a quarter of an hour)
set -eu
cd "$(dirname "$0")"

build=--release
for argument in "$@"; do
    case $argument in
    --no-mistralrs) build="--no-default-features --features nestd/tcp,nestd-tests/tcp" ;;
    *)
        sed -n '2,5s/^# \{0,1\}//p' "$0"
        exit 2
        ;;
    esac
done

missing=
command -v dbus-daemon >/dev/null || missing="$missing dbus-daemon"
# Debian's own Python, whatever else is in the path.
/usr/bin/python3 -c "import dbusmock" 2>/dev/null || missing="$missing python3-dbusmock"
command -v openssl >/dev/null || missing="$missing openssl"
command -v cc >/dev/null || missing="$missing gcc libc6-dev"
if [ -n "$missing" ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq
        # shellcheck disable=SC2086
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
    else
        echo "test.sh: these are missing:$missing (Debian's names)" >&2
        exit 1
    fi
fi

# The end-to-end tests run the binaries that this builds. One selection of packages and one profile
# everywhere: another one would compile mistral.rs again.
# shellcheck disable=SC2086
cargo build --workspace $build
# shellcheck disable=SC2086
exec cargo test --workspace $build
