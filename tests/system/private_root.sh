#!/bin/bash
# Runs "$@" on a computer of its own: a real systemd is process 1 and the system's manager, and
# nothing that is written reaches the real file system, for the root is an overlay of it in memory.
# The directory PRIVATE_SHARE, if named, is at /mnt inside. Needs root, util-linux, nsenter, systemd.
# Outside nothing is touched but a cgroup of our own in each hierarchy, removed again.
set -euo pipefail

hierarchies=$(awk '$3 ~ /^cgroup2?$/ { print $2 }' /proc/self/mounts | sort -u)

# A v1 cpuset takes no process before it has processors and memory nodes.
give_processors() {
    if [ -e "$1/$2/cpuset.mems" ] && [ ! -e "$1/cgroup.controllers" ]; then
        cat "$1/cpuset.cpus" >"$1/$2/cpuset.cpus"
        cat "$1/cpuset.mems" >"$1/$2/cpuset.mems"
    fi
}

leave() {
    # --kill-child takes everything inside along.
    if [ -n "$outer" ]; then kill -9 "$outer" 2>/dev/null || true; fi
    for _ in $(seq 100); do
        local left=0
        for root in $hierarchies; do
            [ ! -d "$root/$CGROUP" ] && continue
            find "$root/$CGROUP" -depth -type d -exec rmdir {} + 2>/dev/null || left=1
        done
        [ $left = 0 ] && break
        sleep 0.05
    done
    rm -rf "$SCRATCH"
}

if [ "${1:-}" != --inside ]; then
    export CGROUP=tidegate-root-$$ SCRATCH
    SCRATCH=$(mktemp -d)
    outer=
    trap leave EXIT
    trap 'exit 130' INT TERM HUP
    for root in $hierarchies; do
        mkdir "$root/$CGROUP"
        give_processors "$root" "$CGROUP"
    done
    (
        for root in $hierarchies; do echo 0 >"$root/$CGROUP/cgroup.procs"; done
        # Killed as well, if we are: nothing else would end what runs in there.
        exec setpriv --pdeathsig KILL unshare --mount --pid --uts --ipc --net --cgroup --fork --kill-child \
            --propagation private "$0" --inside
    ) >"$SCRATCH/log" 2>&1 </dev/null &
    outer=$!
    first=
    for _ in $(seq 600); do
        first=$(cat "/proc/$outer/task/$outer/children" 2>/dev/null) || break
        first=${first%% *}
        # Before it is systemd it has the root of the machine outside, which may run one as well.
        [ -n "$first" ] && [ "$(cat "/proc/$first/comm" 2>/dev/null)" = systemd ] &&
            nsenter --target "$first" --mount --root test -S /run/systemd/private && break
        first=
        sleep 0.05
    done
    if [ -z "$first" ]; then
        echo "systemd did not come up:" >&2
        cat "$SCRATCH/log" >&2
        kill -9 $outer 2>/dev/null || true
        exit 99
    fi
    code=0
    nsenter --target "$first" --mount --pid --uts --ipc --net --cgroup --root --wd \
        env -i PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 "$@" || code=$?
    kill -9 "$first"   # and with it everything in its namespace
    wait $outer 2>/dev/null || true
    exit $code
fi

# --- inside: a root, then systemd in this very process ---------------------------------------------

mount -t tmpfs -o mode=755 tmpfs "$SCRATCH"
cd "$SCRATCH"
mkdir upper work root
mount -t overlay overlay -o "lowerdir=/,upperdir=$SCRATCH/upper,workdir=$SCRATCH/work" root
root=$SCRATCH/root
[ -z "${PRIVATE_SHARE:-}" ] || mount --bind "$PRIVATE_SHARE" "$root/mnt"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
for place in run dev tmp var/tmp; do mount -t tmpfs -o mode=755 tmpfs "$root/$place"; done
chmod 1777 "$root/tmp" "$root/var/tmp"
mkdir "$root"/dev/{pts,shm}
while read -r name major minor; do
    mknod -m 666 "$root/dev/$name" c "$major" "$minor"
done <<END
null 1 3
zero 1 5
full 1 7
random 1 8
urandom 1 9
tty 5 0
END
mount -t devpts -o newinstance,ptmxmode=666,mode=620 devpts "$root/dev/pts"
mount -t tmpfs tmpfs "$root/dev/shm"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"

# The cgroup hierarchies again, as this namespace sees them.
tree=$root/sys/fs/cgroup
if [ "$(stat -fc %T /sys/fs/cgroup)" = cgroup2fs ]; then
    mount -t cgroup2 cgroup2 "$tree"
else
    awk '$3 == "cgroup" { print $2, $4 }' /proc/self/mounts | sort -u >"$SCRATCH/v1"
    mount -t tmpfs -o mode=755 tmpfs "$tree"
    mkdir "$tree/unified"
    mount -t cgroup2 cgroup2 "$tree/unified"
    while read -r where options; do
        name=${where##*/}
        kept=$(tr , '\n' <<<"$options" |
            grep -vE '^(rw|ro|nosuid|nodev|noexec|relatime|xattr|release_agent=.*)$' | paste -sd,)
        [ "$name" != systemd ] || kept=none,name=systemd
        [ -d "$tree/$name" ] || mkdir "$tree/$name"
        mount -t cgroup -o "$kept" cgroup "$tree/$name"
    done <"$SCRATCH/v1"
fi

# Of the units of the machine outside only those that make a bare system; what packages install
# is found where they install it.
units=$root/run/systemd/system
mkdir -p "$units" "$root/run/nothing"
shipped=$root/usr/lib/systemd/system
for target in basic sockets timers paths slices multi-user network network-online shutdown umount; do
    grep -v 'tmp\.mount' "$shipped/$target.target" >"$units/$target.target"
done
grep -vE '^(Wants|Requires)=' "$shipped/sysinit.target" >"$units/sysinit.target"
mkdir "$units/sockets.target.wants"
for unit in systemd-journald.service systemd-journald.socket systemd-journald-dev-log.socket; do
    sed 's/ *systemd-journald-audit.socket//' "$shipped/$unit" >"$units/$unit"
done
ln -s ../systemd-journald.socket ../systemd-journald-dev-log.socket "$units/sockets.target.wants/"
# What the machine outside starts besides would set its kernel's variables, for instance.
rm -rf "$shipped"/*.wants "$root"/etc/systemd/system/*.wants
ip link set lo up
rm -f "$root/etc/machine-id"
tr -d - </proc/sys/kernel/random/uuid >"$root/etc/machine-id"
hostname private
cd "$root"
mkdir run/outside
pivot_root . run/outside
umount -l /run/outside
rmdir /run/outside
cd /
mount --make-rshared /   # a peer group of its own, as on a booted system; credentials need it
exec env -i container=private PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    SYSTEMD_GENERATOR_PATH=/run/nothing SYSTEMD_ENVIRONMENT_GENERATOR_PATH=/run/nothing \
    SYSTEMD_LOG_TARGET=journal SYSTEMD_COLORS=0 /lib/systemd/systemd --system --unit=multi-user.target
