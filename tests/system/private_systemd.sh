#!/bin/bash
# Runs "$@" beside a real `systemd --user` in namespaces of its own, with `systemctl --user` at
# work. Needs root, util-linux and systemd; neither a systemd as PID 1 nor D-Bus. Units lie in
# /run/units. Nothing outside is touched but a cgroup of our own in each hierarchy, removed again.
set -euo pipefail

hierarchies=$(awk '$3 ~ /^cgroup2?$/ { print $2 }' /proc/self/mounts | sort -u)

leave_cgroups() {
    for _ in $(seq 50); do
        local left=0
        for root in $hierarchies; do
            [ ! -d "$root/$TIDEGATE_CGROUP" ] && continue
            find "$root/$TIDEGATE_CGROUP" -depth -type d -exec rmdir {} + 2>/dev/null || left=1
        done
        [ $left = 0 ] && return
        sleep 0.05
    done
}

if [ "${1:-}" != --inside ]; then
    export TIDEGATE_CGROUP=tidegate-test-$$
    for root in $hierarchies; do
        mkdir "$root/$TIDEGATE_CGROUP"
        # A v1 cpuset takes no process before it has processors and memory nodes.
        if [ -e "$root/$TIDEGATE_CGROUP/cpuset.mems" ] && [ ! -e "$root/cgroup.controllers" ]; then
            cat "$root/cpuset.cpus" >"$root/$TIDEGATE_CGROUP/cpuset.cpus"
            cat "$root/cpuset.mems" >"$root/$TIDEGATE_CGROUP/cpuset.mems"
        fi
    done
    trap leave_cgroups EXIT
    code=0
    # First into the cgroup, then into the namespaces: the cgroup namespace is rooted there.
    (
        for root in $hierarchies; do echo 0 >"$root/$TIDEGATE_CGROUP/cgroup.procs"; done
        # Killed as well, if we are: nothing else would end what runs in there.
        exec setpriv --pdeathsig KILL unshare --mount --pid --cgroup --fork --kill-child --propagation private \
            --mount-proc "$0" --inside "$@"
    ) || code=$?
    exit $code
fi
shift

mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/systemd/system /run/units /run/home   # /run/systemd/system: sd_booted(3) says yes
mkdir -m 700 -p /run/user/0

# Mount the cgroup hierarchies again, as this namespace sees them.
if [ "$(stat -fc %T /sys/fs/cgroup)" = cgroup2fs ]; then
    tree=/sys/fs/cgroup
    mount -t cgroup2 cgroup2 $tree
    groups=$tree
else
    awk '$3 == "cgroup" { print $2, $4 }' /proc/self/mounts | sort -u >/run/v1
    mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
    tree=/sys/fs/cgroup/unified
    mkdir $tree
    mount -t cgroup2 cgroup2 $tree
    groups=$tree
    while read -r where options; do
        kept=$(tr , '\n' <<<"$options" |
            grep -vE '^(rw|ro|nosuid|nodev|noexec|relatime|xattr|release_agent=.*)$' | paste -sd,)
        where=/sys/fs/cgroup/${where##*/}
        mkdir "$where"
        mount -t cgroup -o "$kept" cgroup "$where"
        groups="$groups $where"
    done </run/v1
fi
mount --make-rshared /   # a new peer group, not the one outside; sandboxed units need it

for group in $groups; do
    mkdir "$group/manager"
    if [ -e "$group/manager/cpuset.mems" ] && [ ! -e "$group/cgroup.controllers" ]; then
        cat "$group/cpuset.cpus" >"$group/manager/cpuset.cpus"
        cat "$group/cpuset.mems" >"$group/manager/cpuset.mems"
    fi
done

export XDG_RUNTIME_DIR=/run/user/0 HOME=/run/home
unset DBUS_SESSION_BUS_ADDRESS
(
    for group in $groups; do echo 0 >"$group/manager/cgroup.procs"; done
    exec env SYSTEMD_LOG_TARGET=console SYSTEMD_LOG_LEVEL=${MANAGER_LOG:-info} SYSTEMD_UNIT_PATH=/run/units: \
        /lib/systemd/systemd --user --unit=basic.target
) >/run/manager.log 2>&1 </dev/null &
manager=$!
for _ in $(seq 500); do [ -S /run/user/0/systemd/private ] && break; sleep 0.02; done

code=0
"$@" || code=$?
kill -TERM $manager 2>/dev/null || true
wait $manager || true
exit $code
