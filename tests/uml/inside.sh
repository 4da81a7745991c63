#!/bin/sh
# What tests/uml.sh runs in the machine that it boots.
set -u
group=/sys/fs/cgroup/system.slice/nestd.service
failed=

check() { # what, and a condition for test
    what=$1
    shift
    if test "$@"; then echo "holds: $what ($*)"; else
        echo "DOES NOT HOLD: $what ($*)"
        failed=1
    fi
}
mib() { echo $(($(cat "$group/$1") >> 20)); }
killed() { sed -n 's/^oom_kill //p' "$group/memory.events"; }
size() { nestctl --json status | sed -n 's/.*"active_size":"\([^"]*\)".*/\1/p'; }
# Waits until a command succeeds.
until_true() { # seconds, command
    left=$1
    shift
    while ! "$@" >/dev/null 2>&1; do
        left=$((left - 1))
        [ "$left" -gt 0 ] || return 1
        sleep 1
    done
}

models=$(sed -n 's/.*models=\([^ ]*\).*/\1/p' /proc/cmdline)
mount -t hostfs -o "$models" none /var/lib/nestd/models || exit 1
# Answers that take a while; every rung of the ladder by its need alone.
mkdir -p /etc/nestd
cat >/etc/nestd/nestd.toml <<'TOML'
[governor]
profile = "headset"
poll_s = 1.0
dwell_s = 5
TOML
systemctl start nestd
until_true 60 sh -c 'nestctl --json status | grep -q "\"state\":\"ready\""'
echo "ready at $(size) with $(mib memory.max) MiB"
check "MemoryMax is the headset's" "$(mib memory.max)" = 4352
check "so is MemoryHigh" "$(mib memory.high)" = 4096
check "MemorySwapMax lets nothing out" "$(mib memory.swap.max)" = 0
check "TasksMax is in force" "$(cat "$group/pids.max")" = 512
check "and the daemon is counted by it" "$(cat "$group/pids.current")" -gt 1
nestctl governor

# An answer begins within the headset's budget, and the budget becomes the handheld's.
nestctl --json ask --max-tokens 60 "Tell me a long story" >/tmp/answer 2>/tmp/answer.err &
asked=$!
until_true 120 grep -q text /tmp/answer
before=$(size)
systemctl set-property --runtime nestd.service MemoryHigh=2944M MemoryMax=3G
check "the new budget is in force" "$(mib memory.max)" = 3072
until_true 60 sh -c "! nestctl --json status | grep -q '\"active_size\":\"$before\"'"
after=$(size)
nestctl governor
check "the size went down from $before" "$after" != "$before"
wait "$asked"
check "the answer ended well" "$?" = 0
tail -n 1 /tmp/answer
check "all of it within the budget" "$(mib memory.current)" -le 3072
check "nothing was killed" "$(killed)" = 0

# Memory of the whole machine runs out: a file in memory takes what is left but 150 MiB.
mount -o remount,size=100% /dev/shm
free=$(($(sed -n 's/^MemAvailable: *\([0-9]*\) kB/\1/p' /proc/meminfo) / 1024))
dd if=/dev/zero of=/dev/shm/hog bs=1M count=$((free - 150)) 2>/dev/null
until_true 60 sh -c 'nestctl --json status | grep -q "\"state\":\"parked\""'
nestctl --json status
check "the model was put away" "$(nestctl --json status | grep -c '"state":"parked"')" = 1
rm /dev/shm/hog
sleep 8
nestctl ask --max-tokens 4 hello >/dev/null
check "and came back for the next request" "$?" = 0
check "nothing was killed" "$(killed)" = 0
check "nor was the service started anew" "$(systemctl show --value -p NRestarts nestd)" = 0
echo "peak $(mib memory.peak) MiB"
nestctl --json governor
journalctl --no-pager -o cat -u nestd | tail -n 40
[ "$failed" ] || echo "all of it holds"
