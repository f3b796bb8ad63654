# shellcheck shell=bash
# Sourced by submit.sh: functions about the nodes of a job.

# Number of GPUs of this node, from 4, gpu:4 or gpu:l40s:4(IDX:0-3); an old Slurm lists only their indices.
gpus() {
    local count=${SLURM_GPUS_ON_NODE:-}
    count=${count%%(*} count=${count##*:}
    if [[ ! $count =~ ^[0-9]+$ ]]; then
        count=$(tr ',' '\n' <<<"${SLURM_JOB_GPUS:-}" | grep -c .)
    fi
    echo "$count"
}

# "NODES COUNT" for each group of the nodes of job $1 with the same number of GPUs.
gpus_by_nodes() {
    scontrol show job --details "$1" | awk '
        match($0, /^ *Nodes=[^ ]+/) && / GRES=/ {
            nodes = substr($0, 1, RLENGTH); sub(/.*=/, "", nodes)
            sub(/.* GRES=/, ""); gsub(/\([^)]*\)/, "")
            gpus = 0
            for (i = split($1, kinds, ","); i > 0; i--)
                if (kinds[i] ~ /^gpu:/) gpus += substr(kinds[i], match(kinds[i], /[0-9]+$/))
            print nodes, gpus
        }'
}

# A rendezvous port for job $1. It depends on the job, so that two on a node do not meet; other programs may hold it.
free_port() {
    local port=$((10000 + $1 % 20000))
    while grep -qi "^ *[0-9]*: [0-9A-F]*:$(printf %04X "$port") " /proc/net/tcp /proc/net/tcp6; do
        port=$((port + 1))
    done
    echo "$port"
}

# Refuses a node that cannot take part. Runs on each node before the launch, as torchrun would retry for minutes without
# a message. $1: first node; $2: project folder; $3: the program to run there.
check_node() {
    getent hosts "$1" >/dev/null || refuse "$HOSTNAME cannot resolve $1, the first node, where all nodes meet"
    [ -f train.py ] && [ . -ef "$2" ] || refuse "$HOSTNAME does not see $2: the project folder has to be on a shared disk"
    type -P "$3" >/dev/null || refuse "$HOSTNAME does not see $3: the environment has to be on a shared disk"
}

# srun takes a job's options from its variables. Those for the number of tasks, and the CPUs, GPUs and memory of each,
# are unset: each node has one launcher, with all the CPUs and memory that the job has there.
forget_tasks() {
    local name
    for name in "${!SRUN_@}" "${!SLURM_@}"; do
        case ${name#*_} in
        NTASKS* | NPROCS | TASKS_PER_* | CPUS_PER_* | GPUS | GPUS_PER_* | GRES* | MEM_* | *TRES* | *_BIND* | \
            *_PER_CORE | *_PER_SOCKET | STEP_* | DIST* | HOSTFILE | HINT | *OVERCOMMIT | EXACT | EXCLUSIVE | \
            SPREAD_JOB | CORE_SPEC | THREAD_SPEC | WORKING_DIR | REMOTE_CWD) unset "$name" ;;
        esac
    done
}
