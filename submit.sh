#!/bin/bash
# Train on a Slurm cluster. Submit from the project folder; what stands behind submit.sh goes to train.py:
#   sbatch submit.sh
#   sbatch submit.sh --preset medium --epochs 50
#   sbatch --nodes=2 submit.sh
#   sbatch --array=0-4 submit.sh --seed %a --run-name seed-%a     # five jobs; %a is the number of each
#   sbatch --gres=none submit.sh run python -m metrics.report RUN # any other command in the environment below
# Another group sets SBATCH_PARTITION, SBATCH_ACCOUNT and SBATCH_QOS, which sbatch reads over the lines below.
# CONDA_ENV names the conda environment; NPROC_PER_NODE the processes per node (default: one for each GPU).
# At the time limit, or after a crash that came later than a checkpoint, the job saves what it can and queues itself
# again, until it has been started again MAX_REQUEUES times (default 30).
#
#SBATCH --job-name=ddpm
#SBATCH --partition=hcn1-gpu
#SBATCH --account=pi-hcn1
#SBATCH --qos=hcn1
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:4
#SBATCH --cpus-per-task=32
#SBATCH --mem=200G
#SBATCH --time=08:00:00
#SBATCH --output=logs/slurm-%j.out
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@180
#SBATCH --requeue

say() { printf 'submit.sh: %s\n' "$*"; }
refuse() { say "$*" >&2; exit 2; }

# ---- signals: Slurm tells this shell, and only it, to stop; the processes that train have to hear of it -----------

# From here on USR1 and TERM end nothing by themselves; the last one that came is left in $caught.
listen() {
    caught='' launcher='' pid='' told=''
    trap 'hand_on USR1' USR1
    trap 'hand_on TERM' TERM
}

# Runs torchrun or srun and returns its exit code. In the background, as bash sits on a signal while a command runs
# in the foreground. torchrun ignores USR1 (also over exec): some sites send a signal to every process of a task.
supervise() {
    local code interrupted
    launcher=$1
    ([ "$launcher" = srun ] || trap '' USR1; exec "$@") &
    pid=$!
    [ -z "$caught" ] || hand_on "$caught" # it came before there was anything to hand it on to
    # A trap ends `wait` early, with a code of its own; a code once had is given again.
    while interrupted=''; wait "$pid"; code=$?; [ -n "$interrupted" ]; do :; done
    return "$code"
}

# To torchrun's children, as torchrun itself makes a failure of a signal. srun would kill its tasks on TERM, but sends
# USR1 on to them, and they do as this shell does. It is lost on a srun that is still starting: hence again and again.
hand_on() {
    [ "$caught" = "$1" ] || say "$1 received on $HOSTNAME"
    caught=$1 interrupted=yes
    [ -n "$pid" ] && [ -z "$told" ] || return 0
    told=yes
    if [ "$launcher" = srun ]; then
        while sleep 1 && kill -s USR1 "$pid" 2>/dev/null; do :; done &
    else
        while kill -0 "$pid" 2>/dev/null && ! tell "$1" $(pgrep -P "$pid"); do sleep 0.5; done
    fi
}

# Sends a signal to those of the processes that have a handler for it; one that is still starting would die of it.
# One worker is enough, as the ranks agree to stop. Fails if there was none.
tell() {
    local signal=$1 process handled none=1
    for process in "${@:2}"; do
        handled=$(awk '/^SigCgt:/ { print $2 }' "/proc/$process/status" 2>/dev/null)
        if (((0x0$handled >> ($(kill -l "$signal") - 1)) & 1)); then kill -s "$signal" "$process" && none=0; fi
    done
    return $none
}

listen
[ -n "${SLURM_JOB_ID:-}" ] || refuse "this is a Slurm batch script: run 'sbatch submit.sh [flags of train.py]'," \
    "or without Slurm 'torchrun --standalone --nproc_per_node=<GPUs> train.py'"
# (Slurm runs a copy of this file from its spool folder, so the file's own path says nothing.)
cd "${SLURM_SUBMIT_DIR:-.}" || exit 2
[ -f train.py ] || refuse "no train.py in $PWD: submit from the project folder"
export MAX_REQUEUES=${MAX_REQUEUES:-30}
[[ $MAX_REQUEUES =~ ^[0-9]+$ ]] || refuse "MAX_REQUEUES=$MAX_REQUEUES: give a whole number, 0 for never"
[ -z "${SLURM_ARRAY_TASK_ID:-}" ] || set -- "${@//%a/$SLURM_ARRAY_TASK_ID}"

# ---- the environment: modules and conda where they are, else .venv ------------------------------------------------
if command -v module >/dev/null; then
    for name in cuda/12.6 python/miniforge-25.3.0; do
        if module load "$name"; then say "module $name"; else say "no module $name here, going on without it"; fi
    done
fi
CONDA_ENV=${CONDA_ENV:-superstition-sd}
CONDA_EXE=${CONDA_EXE:-$(type -P conda)}
if [ -n "$CONDA_EXE" ] && eval "$("$CONDA_EXE" shell.bash hook)" && conda activate "$CONDA_ENV" 2>/dev/null; then
    say "conda environment $CONDA_ENV"
elif [ -f .venv/bin/activate ]; then
    say "no conda environment $CONDA_ENV here, using $PWD/.venv"
    # shellcheck source=/dev/null
    source .venv/bin/activate
else
    refuse "no conda environment $CONDA_ENV and no .venv in $PWD: run 'make install' there, or set CONDA_ENV"
fi
command -v torchrun >/dev/null || refuse "this environment has no torchrun: 'pip install -r requirements.txt' in it"

[ "${1:-}" != run ] || exec "${@:2}"

# A job that starts again goes on with what it has saved, whatever it began with.
[ "${SLURM_RESTART_COUNT:-0}" -eq 0 ] || set -- "$@" --resume auto
# What Slurm says of this job, in one line; nothing if it does not answer.
show_job() { timeout 60 scontrol show job --oneliner "$SLURM_JOB_ID" 2>/dev/null; }
SCONTROL_SHOW_JOB=$(show_job) python -m metrics.requeue before "$@" || exit # it has said which flag is wrong

# ---- launch -------------------------------------------------------------------------------------------------------
# The output is a file: unbuffered, and no escape codes, whatever the login shell has set.
unset FORCE_COLOR CLICOLOR_FORCE PY_COLORS TTY_COMPATIBLE TTY_INTERACTIVE
export PYTHONUNBUFFERED=1 NO_COLOR=1 TERM=dumb
nodes=${SLURM_JOB_NUM_NODES:-1}
processes=${NPROC_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}
cpus=${SLURM_CPUS_PER_TASK:-1}
export OMP_NUM_THREADS=$((cpus > processes ? cpus / processes : 1))
say "job $SLURM_JOB_ID, restart ${SLURM_RESTART_COUNT:-0}, $nodes node(s): ${SLURM_JOB_NODELIST:-$HOSTNAME};" \
    "on each ${SLURM_GPUS_ON_NODE:-no} GPU(s), $processes process(es) with $OMP_NUM_THREADS thread(s)"

command=(torchrun --nproc_per_node="$processes")
if [ "$nodes" -eq 1 ]; then
    command+=(--standalone train.py "$@")
else
    # Port and id are the job's own: jobs that share a node, or a job and its earlier start, must not meet.
    read -r first < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    command+=(--nnodes="$nodes" --rdzv_backend=c10d --rdzv_endpoint="$first:$((10000 + SLURM_JOB_ID % 20000))"
        --rdzv_id="${SLURM_JOB_ID}_${SLURM_RESTART_COUNT:-0}" train.py "$@")
fi
say "$(printf '%q ' "${command[@]}")"
if [ "$nodes" -gt 1 ]; then
    # srun does not take over --cpus-per-task (from 22.05 on). A node that fails ends the others at once; once a node
    # has ended well, they have 60 s.
    on_each_node="$(declare -f say listen supervise hand_on tell); listen; supervise \"\$@\""
    command=(srun --nodes="$nodes" --ntasks-per-node=1 --cpus-per-task="$cpus" --export=ALL --wait=60
        --kill-on-bad-exit=1 bash -c "$on_each_node" submit.sh "${command[@]}")
fi
supervise "${command[@]}"
code=$?
say "exit code $code"

# ---- the end: queue the job again, or end with the code that makes its state in Slurm true ------------------------
SCONTROL_SHOW_JOB=$(show_job) python -m metrics.requeue after "$code" "$caught" "$@"
verdict=$?
if [ "$verdict" -eq 10 ] && [ "$caught" = TERM ]; then
    say "not queued again from here, as TERM came meanwhile"
elif [ "$verdict" -eq 10 ]; then
    job=$SLURM_JOB_ID
    [ -z "${SLURM_ARRAY_JOB_ID:-}" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
    say "queueing job $job again"
    trap '' TERM # which is what it does to this shell
    for pause in 5 20 0; do # its controller may be restarting
        scontrol requeue "$job" && break
        [ "$pause" -ne 0 ] || say "Slurm does not queue it again: to continue, submit the same command"
        sleep "$pause"
    done
fi
[ "$verdict" -eq 0 ] || [ "$code" -ne 0 ] || code=75 # not finished: the job must not be called COMPLETED
exit "$code"
