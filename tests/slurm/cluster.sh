#!/bin/bash
# Runs a command beside a real Slurm of its own, made for it and gone with it:
#   tests/slurm/cluster.sh python -m pytest tests/slurm
#   tests/slurm/cluster.sh bash                            # sbatch, squeue, ... by hand
# Two nodes with four pretended GPUs each, and the partitions hcn1-gpu and gpu-high, which preempts the other. All of it
# lives in namespaces of its own: nothing of the machine is changed or in the way, and nothing can outlive this script.
# Wants Debian or Ubuntu and root; what is not installed, apt installs.
set -euo pipefail

nodes=(hcn1-vn1 hcn1-vn2)
network=10.77.0 # node 1 is .1, node 2 is .2, and the controller, with the command, .254

die() { printf 'cluster.sh: %s\n' "$*" >&2; exit 1; }

# On the machine: makes the namespaces, sees to it that they end, and returns the command's exit code.
outside() {
    [ $# -gt 0 ] || die "give a command to run in the cluster"
    [ "$(id -u)" = 0 ] || die "needs root"
    local program code
    for program in slurmctld slurmd sbatch munged ip pkill; do
        command -v "$program" >/dev/null || { install_slurm; break; }
    done
    state=$(mktemp -d /tmp/slurm-cluster.XXXXXX)
    trap clean_up EXIT
    trap : INT # it is for the command
    setpriv --pdeathsig KILL unshare --mount --net --uts --pid --fork --kill-child --mount-proc \
        "$0" --inside "$state" "$@" && code=0 || code=$?
    exit "$code"
}

clean_up() {
    ! pkill -KILL -P $$ || sleep 1 # if this script was told to end: with its child, all in the namespaces ends
    rm -rf "$state"
    find /sys/fs/cgroup/freezer/slurm_hcn1-vn? -depth -type d -exec rmdir {} + 2>/dev/null || true
}

install_slurm() {
    local policy=/usr/sbin/policy-rc.d made=''
    # No daemon of these packages may start by itself.
    [ -e "$policy" ] || { printf '#!/bin/sh\nexit 101\n' >"$policy"; chmod +x "$policy"; made=yes; }
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install -q --yes --no-install-recommends \
        slurmctld slurmd slurm-client munge iproute2 procps
    [ -z "$made" ] || rm "$policy"
}

# Process 1 of a process namespace: when it ends, all that it has started ends.
inside() {
    state=$1 code=0
    export SLURM_CONF=$state/slurm.conf SLURM_CLUSTER=$state
    configure
    hostname controller
    mount --bind "$state/hosts" /etc/hosts
    ip link set lo up
    ip link add switch type bridge
    ip address add "$network.254/24" dev switch
    ip link set switch up

    munged --foreground --force --key-file="$state/munge.key" --socket="$state/munge.socket" \
        --pid-file="$state/munged.pid" --seed-file="$state/munge.seed" 2>"$state/munged.log" &
    slurmctld -D 2>"$state/controller.err" &
    for number in 1 2; do
        unshare --net --uts "$0" --node "$state" "$number" &
        while [ /proc/$!/ns/net -ef /proc/self/ns/net ]; do sleep 0.1; done # until it has a network of its own
        ip link add "port$number" type veth peer name cable netns $!
        ip link set "port$number" master switch up
    done
    for _ in {1..150}; do
        [ "$(idle)" != 2 ] || break
        sleep 0.2
    done
    [ "$(idle)" = 2 ] || { tail -n 20 "$state"/*.log >&2; die "Slurm did not come up"; }

    "${@:2}" || code=$?
    scancel --user=root # it closes the jobs' cgroups
    for _ in {1..50}; do [ -z "$(squeue --noheader)" ] || sleep 0.2; done
    exit "$code"
}

idle() { sinfo --noheader --partition=hcn1-gpu --states=idle --format=%D 2>/dev/null; }

node() {
    local name=${nodes[$2 - 1]}
    hostname "$name"
    until ip link set cable up 2>/dev/null; do sleep 0.1; done
    ip link set lo up
    ip address add "$network.$2/24" dev cable
    exec slurmd -D -N "$name" 2>"$1/$name.err"
}

configure() {
    local tracking=linuxproc
    # As on a real cluster: a signal to a job reaches its shell, not what the shell has started.
    [ ! -w /sys/fs/cgroup/freezer/cgroup.procs ] || tracking=cgroup
    mkdir "$state/controller" "${nodes[@]/#/$state/}"
    for number in {0..3}; do mknod "$state/gpu$number" c 1 3; done # /dev/null will do
    head -c 1024 /dev/urandom >"$state/munge.key"
    chmod 600 "$state/munge.key"
    printf '127.0.0.1 localhost\n::1 localhost\n%s controller\n' "$network.254" >"$state/hosts"
    printf "$network.%s\n" "1 ${nodes[0]}" "2 ${nodes[1]}" >>"$state/hosts"
    printf 'CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n' >"$state/cgroup.conf"
    printf 'AutoDetect=off\nName=gpu File=%s/gpu[0-3]\n' "$state" >"$state/gres.conf"
    # Times are shorter than a cluster's: cred_expire is how long a job that is queued again has to wait.
    cat >"$SLURM_CONF" <<CONF
ClusterName=tests
SlurmctldHost=controller($network.254)
SlurmUser=root
AuthInfo=socket=$state/munge.socket,cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/$tracking
TaskPlugin=task/none
MpiDefault=none
StateSaveLocation=$state/controller
SlurmdSpoolDir=$state/%n
SlurmctldPidFile=$state/controller.pid
SlurmdPidFile=$state/%n.pid
SlurmctldLogFile=$state/controller.log
SlurmdLogFile=$state/%n.log
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=15
MessageTimeout=30 # longer than KillWait: else a signal is sent again, to the same step of the next start
MinJobAge=86400
GresTypes=gpu
NodeName=${nodes[0]} NodeAddr=$network.1 CPUs=32 RealMemory=250000 Gres=gpu:4
NodeName=${nodes[1]} NodeAddr=$network.2 CPUs=32 RealMemory=250000 Gres=gpu:4
PartitionName=hcn1-gpu Nodes=ALL Default=YES MaxTime=08:00:00 PriorityTier=1 PreemptMode=REQUEUE GraceTime=5
PartitionName=gpu-high Nodes=ALL MaxTime=08:00:00 PriorityTier=10 PreemptMode=OFF
CONF
}

case ${1:-} in
--inside) inside "${@:2}" ;;
--node) node "${@:2}" ;;
*) outside "$@" ;;
esac
