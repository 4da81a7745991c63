#!/bin/sh
# Runs Nestd's main job: builds it, starts the daemon with the demo model on a private message bus and
# socket, asks questions over both APIs, switches the MatFormer size, asks again, then runs the same model
# as a GGUF file, switches sizes in the middle of an answer, lets a battery of files run low, and stops.
# Needs Rust, a C compiler and dbus-daemon; the first build takes about a quarter of an hour, since it
# compiles mistral.rs. Everything it makes but the build lives in a temporary folder.
set -eu
cd "$(dirname "$0")"

if ! command -v dbus-daemon >/dev/null; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends dbus-daemon >/dev/null
    else
        echo "demo.sh: dbus-daemon is missing (Debian's package dbus-daemon)" >&2
        exit 1
    fi
fi

cargo build --release --workspace
bin=$PWD/target/release

work=$(mktemp -d)
bus_pid=
daemon_pid=
finish() {
    status=$?
    trap - EXIT INT TERM
    [ -z "$daemon_pid" ] || kill "$daemon_pid" 2>/dev/null || true
    [ -z "$daemon_pid" ] || wait "$daemon_pid" 2>/dev/null || true
    [ -z "$bus_pid" ] || kill "$bus_pid" 2>/dev/null || true
    if [ "$status" != 0 ] && [ -s "$work/nestd.log" ]; then
        echo "--- the daemon's log" >&2
        cat "$work/nestd.log" >&2
    fi
    rm -rf "$work"
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM

say() {
    printf '\n\033[1m%s\033[0m\n' "$*"
}

# The daemon's models folder holds a folder or a GGUF file for each model.
mkdir "$work/models"
ln -s "$PWD/models/demo/hf" "$work/models/demo"
ln -s "$PWD/models/demo/nestd-demo-Q8_0.gguf" "$work/models/demo-gguf.gguf"
ln -s "$PWD/models/demo/hf/sizes.csv" "$work/models/demo-gguf.sizes.csv"
cat >"$work/bus.conf" <<END
<busconfig><type>session</type><listen>unix:path=$work/bus</listen>
<policy context="default"><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy>
</busconfig>
END
cat >"$work/nestd.toml" <<END
[model]
dir = "$work/models"
cache_dir = "$work/cache"
name = "demo"
isq = "none"
[governor]
state_file = "$work/governor.toml"
sys = "$work/sys"
battery = "sysfs"
poll_s = 0.2
dwell_s = 1.0
[grpc]
socket = "$work/nestd.sock"
[metrics]
listen = "$work/metrics.sock"
[dbus]
bus = "unix:path=$work/bus"
[access]
control = ["$(id -u)"]
END

# A battery of files, for the governor.
battery="$work/sys/class/power_supply/BAT0"
mkdir -p "$battery"
echo Battery >"$battery/type"
echo Discharging >"$battery/status"
echo 90 >"$battery/capacity"

dbus-daemon --nofork --config-file="$work/bus.conf" 2>/dev/null &
bus_pid=$!
while [ ! -S "$work/bus" ]; do sleep 0.05; done

say "nestd starts"
# The allocator's settings give an unloaded model's memory back (docs/design.md).
MALLOC_MMAP_THRESHOLD_=131072 MALLOC_ARENA_MAX=2 "$bin/nestd" --config "$work/nestd.toml" 2>"$work/nestd.log" &
daemon_pid=$!

export NESTCTL_SOCKET="$work/nestd.sock" NESTCTL_BUS="unix:path=$work/bus"
nestctl() {
    "$bin/nestctl" "$@"
}
tries=0
until nestctl status >/dev/null 2>&1; do
    tries=$((tries + 1))
    kill -0 "$daemon_pid" 2>/dev/null && [ $tries -lt 300 ] || exit 1
    sleep 0.1
done

# Asks one question over one API, and shows it as a person would type it.
ask() {
    printf '\n$ nestctl %s ask "%s"\n' "$1" "$2"
    nestctl "$1" ask "$2"
}

ask --grpc "What are you?"
ask --grpc "Turn on the lights in the kitchen"
ask --dbus "What is the capital of France?"
ask --dbus "How do you say good morning in German?"

say "The model's sizes, and what each needs"
nestctl models

smallest=$(nestctl --json status | sed 's/.*"available_sizes":\[\([^]]*\)\].*/\1/; s/.*"\([^"]*\)"$/\1/')
say "The device runs low: the smallest size, $smallest"
nestctl size "$smallest"
ask --grpc "Set a timer for ten minutes"
ask --dbus "What is the capital of France?"

say "The same model as a GGUF file, mapped: any size at any token"
nestctl load demo-gguf
ask --grpc "What are you?"
ask --dbus "What is the capital of France?"

say "The size changes in the middle of an answer (a long string, by a JSON Schema)"
echo '{"type":"string","minLength":1200,"maxLength":1200}' >"$work/long.json"
(
    # All but the first, which is in use.
    for size in $(nestctl --json status | sed 's/.*"available_sizes":\[[^,]*,\([^]]*\)\].*/\1/; s/[",]/ /g'); do
        sleep 0.1
        nestctl size "$size" >/dev/null 2>&1
    done
) &
nestctl ask --json-schema "$work/long.json" --max-tokens 1500 "What are you?"
wait $!

say "The battery runs low in the middle of an answer: the governor takes a smaller size"
nestctl size --auto
# Larger takes a dwell.
tries=0
until nestctl --json governor | grep -q '"cause":"plenty"' || [ $tries = 100 ]; do
    tries=$((tries + 1))
    sleep 0.1
done
(
    for charge in 45 20; do
        sleep 0.2
        echo $charge >"$battery/capacity"
    done
) &
nestctl ask --json-schema "$work/long.json" --max-tokens 1500 "What are you?"
wait $!
sleep 0.5
printf '\n$ nestctl governor\n'
nestctl governor

say "nestd stops"
kill "$daemon_pid"
wait "$daemon_pid"
daemon_pid=
tail -n 2 "$work/nestd.log"
