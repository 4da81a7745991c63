#!/bin/sh
# Checks the layer: what is generated is as Cargo.lock says, no crate wants a newer Rust than the workspace has, the
# recipes pass oelint-adv for both releases, the kas files are valid, and the real BitBake library parses everything
# and gives the values that it should. Wants cargo, git and python3 with venv; on Debian root gets the latter installed.
#
#   yocto/check.sh [FOLDER]    FOLDER is for the Python packages; without it, target/yocto-venv
set -eu
cd "$(dirname "$0")/.."

case ${1-} in
-*)
    sed -n '2,6s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
venv=${1:-target/yocto-venv}

say() {
    printf '%s\n' "yocto/check.sh: $*" >&2
}

if ! /usr/bin/python3 -c 'import ensurepip, tomllib, venv' 2>/dev/null; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-venv >/dev/null
    else
        say "python3 from 3.11 on with its module venv is missing (Debian: python3-venv)"
        exit 1
    fi
fi
# A folder of packages is kept for as long as the list of them is the same.
if ! cmp -s yocto/requirements.txt "$venv/requirements.txt"; then
    rm -rf "$venv"
    /usr/bin/python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement yocto/requirements.txt
    cp yocto/requirements.txt "$venv/"
fi

failed=0
say "what is generated"
/usr/bin/python3 yocto/generate.py --check || failed=1

# HOMEPAGE: there is none yet.
recipes=$(find yocto/meta-nestd -name '*.bb' -o -name '*.bbclass' -o -name '*.inc' -o -name layer.conf | sort)
for release in whinlatter wrynose; do
    say "oelint-adv for $release"
    # shellcheck disable=SC2086
    "$venv/bin/oelint-adv" --release "$release" --quiet --hide info --relpaths --constantmods +yocto/oelint.json \
        --suppress oelint.vars.homepageping --suppress oelint.var.mandatoryvar.HOMEPAGE $recipes || failed=1
done

say "BitBake and kas"
# With a nestctl that was built, models are checked by it too.
for nestctl in target/release/nestctl target/debug/nestctl; do
    if [ -z "${NESTCTL-}" ] && [ -x "$nestctl" ]; then
        NESTCTL=$PWD/$nestctl
        export NESTCTL
    fi
done
"$venv/bin/python" -B yocto/check_layer.py || failed=1

if [ "$failed" = 0 ]; then
    say "all is well"
fi
exit "$failed"
