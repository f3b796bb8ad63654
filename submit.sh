#!/bin/bash
# Train on a Slurm cluster. Submit from the project folder; arguments after submit.sh are passed to train.py:
#   sbatch submit.sh
#   sbatch submit.sh --preset medium --epochs 50
#   sbatch --nodes=2 submit.sh
#   sbatch --array=0-4 submit.sh --seed %a --run-name seed-%a     # five jobs; %a is the number of each
#   sbatch --gres=none submit.sh run python -m metrics.report RUN # any other command in the environment below
# Other groups set SBATCH_PARTITION, SBATCH_ACCOUNT and SBATCH_QOS, which take precedence over the lines below.
# VENV, CONDA_ENV, CONTAINER and MODULES choose the environment (slurm/environment.sh), NPROC_PER_NODE the processes per
# node (default: one for each GPU).
# At the time limit, the job saves a checkpoint and queues itself again; so it does after a crash, if it has saved a new
# checkpoint. It does this MAX_REQUEUES times at most (default 30).
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

# ---- signals: Slurm signals only this shell to stop; it has to inform the processes that train --------------------

# From here on USR1 and TERM do not end this shell; the last one is left in $caught.
listen() {
    caught='' kind='' pid='' told=''
    trap 'hand_on USR1' USR1
    trap 'hand_on TERM' TERM
}

# supervise KIND COMMAND... runs a command and returns its exit code. KIND is torchrun, srun or other. The command runs
# in the background, as bash handles no signal while a command runs in the foreground. torchrun ignores USR1 (also after
# exec), because some sites send a signal to every process of a task.
supervise() {
    local code interrupted
    kind=$1
    ([ "$kind" != torchrun ] || trap '' USR1; exec "${@:2}") &
    pid=$!
    [ -z "$caught" ] || hand_on "$caught" # a signal that came before the command
    # A trap ends `wait` early, with another exit code; `wait` can be repeated for the right one.
    while interrupted=''; wait "$pid"; code=$?; [ -n "$interrupted" ]; do :; done
    return "$code"
}

# srun would kill its tasks on TERM, but passes USR1 on to them, and they do the same as this shell. An srun that is
# still starting loses the signal, and a command that is still starting has no handler yet: so it is sent repeatedly.
hand_on() {
    [ "$caught" = "$1" ] || say "$1 received on $HOSTNAME"
    caught=$1 interrupted=yes
    [ -n "$pid" ] || return 0
    if [ "$kind $1" = "other TERM" ]; then
        tell TERM "$pid" || kill "$pid" # TERM ends a command without a handler
    elif [ -z "$told" ]; then
        told=yes
        if [ "$kind" = srun ]; then
            while sleep 1 && kill -s USR1 "$pid" 2>/dev/null; do :; done &
        elif ! tell "$1" "$pid"; then
            [ "$kind" = torchrun ] || say "the command has no handler for $1 and goes on"
            until tell "$1" "$pid" || ! kill -0 "$pid" 2>/dev/null; do sleep 0.5; done &
        fi
    fi
}

# Sends signal $1 to process $2 and its descendants, on each branch to the first one that has a handler; without one a
# process would be killed. Fails if there is none, or if the command has not replaced the copy of this shell that starts
# it: that still seems to have this shell's handlers, but would lose the signal.
tell() {
    local signal=$1 process=$2 handled child none=1
    ! cmp -s "/proc/$process/cmdline" "/proc/$$/cmdline" || return 1
    handled=$(awk '/^SigCgt:/ { print $2 }' "/proc/$process/status" 2>/dev/null)
    if (((0x0$handled >> ($(kill -l "$signal") - 1)) & 1)) && ! launches "$process"; then
        kill -s "$signal" "$process"
        return
    fi
    for child in $(pgrep -P "$process"); do ! tell "$signal" "$child" || none=0; done
    return $none
}

# Is process $1 torchrun, for which a signal is a failure? Or a container runtime, which passes all signals to torchrun?
# Or still this shell, before its `exec`?
launches() {
    tr '\0' ' ' <"/proc/$1/cmdline" | grep -q -e '-m torch\.distributed\.run ' -e '/torchrun ' ||
        grep -qx -e apptainer -e singularity -e 'starter.*' "/proc/$1/comm" ||
        cmp -s "/proc/$1/cmdline" "/proc/$$/cmdline"
} 2>/dev/null

# ---- where it runs ------------------------------------------------------------------------------------------------

# Slurm runs a copy of this file from its spool folder, so the path of this file does not help. The project is searched
# for in and above the submitted script (the flags that follow it do no harm), the working directory and the folder that
# it was submitted from.
go_to_project() {
    local script folder places=()
    script=$(scontrol show job "$job" 2>/dev/null | sed -n '/Command=(null)/!s/^ *Command=//p')
    [[ -z $script || $script == /* ]] || script=${SLURM_SUBMIT_DIR:-$PWD}/$script
    for folder in "$script" "$PWD" "${SLURM_SUBMIT_DIR:-}" "$(realpath "${BASH_SOURCE[0]}")"; do
        places+=("'$folder'")
        while [ -n "$folder" ]; do
            if [ -f "$folder/train.py" ] && [ -f "$folder/slurm/environment.sh" ]; then cd "$folder" && return; fi
            folder=${folder%/*}
        done
    done
    refuse "no train.py and slurm/environment.sh in or above ${places[*]}: submit from the project folder, or with" \
        "--chdir=PROJECT"
}

set +eu # the login shell may have exported SHELLOPTS
listen
HOSTNAME=$(uname -n) # many shells export that of the login node
export -n HOSTNAME
[ -n "${SLURM_JOB_ID:-}" ] || refuse "this is a Slurm batch script: run 'sbatch submit.sh [flags of train.py]'," \
    "or without Slurm 'torchrun --standalone --nproc_per_node=<GPUs> train.py'"
# What Slurm calls this job: asked for the number alone, it answers for all of an array if the number is the array's too.
job=$SLURM_JOB_ID
[ -z "${SLURM_ARRAY_JOB_ID:-}" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
[ "$job" = "$SLURM_JOB_ID" ] && name=$job || name="$job (number $SLURM_JOB_ID)"
say "job $name, restart ${SLURM_RESTART_COUNT:-0}"
go_to_project
[ "$PWD" = "${SLURM_SUBMIT_DIR:-$PWD}" ] || say "project folder $PWD; paths among the flags count from there"
export MAX_REQUEUES=${MAX_REQUEUES:-30}
[[ $MAX_REQUEUES =~ ^[0-9]+$ ]] || refuse "MAX_REQUEUES=$MAX_REQUEUES: give a whole number, 0 for never"
# shellcheck source=slurm/nodes.sh
source slurm/nodes.sh
gpus=$(gpus)
processes=${NPROC_PER_NODE:-$((gpus > 0 ? gpus : 1))}
[[ $processes =~ ^[1-9][0-9]*$ ]] || refuse "NPROC_PER_NODE=$processes: give the processes per node, 1 or more"
[ -z "${SLURM_ARRAY_TASK_ID:-}" ] || set -- "${@//%a/$SLURM_ARRAY_TASK_ID}"
# The output is a file: unbuffered and without escape codes, whatever the login shell has set.
unset FORCE_COLOR CLICOLOR_FORCE PY_COLORS TTY_COMPATIBLE TTY_INTERACTIVE
export PYTHONUNBUFFERED=1 NO_COLOR=1 TERM=dumb
# shellcheck source=slurm/environment.sh
source slurm/environment.sh

if [ "${1:-}" = run ]; then
    [ $# -gt 1 ] || refuse "run what? 'sbatch submit.sh run COMMAND...'"
    supervise other "${inside[@]}" "${@:2}"
    exit
fi

# Slurm's record of this job, in one line; empty if Slurm does not answer.
show_job() { timeout 60 scontrol show job --oneliner "$job" 2>/dev/null; }
SCONTROL_SHOW_JOB=$(show_job) python -m metrics.jobs.requeue before "$@" || exit # the wrong flag is named already

# ---- launch -------------------------------------------------------------------------------------------------------
nodes=${SLURM_JOB_NUM_NODES:-1}
cpus=${SLURM_CPUS_ON_NODE:-${SLURM_CPUS_PER_TASK:-1}}
export OMP_NUM_THREADS=$((cpus > processes ? cpus / processes : 1))
say "$nodes node(s): ${SLURM_JOB_NODELIST:-$HOSTNAME}; on each $gpus GPU(s), $processes process(es) with" \
    "$OMP_NUM_THREADS thread(s)"

# Not the command `torchrun`, which may belong to another environment.
command=("${inside[@]}" "$python" -m torch.distributed.run --nproc_per_node="$processes")
if [ "$nodes" -eq 1 ]; then
    command+=(--standalone train.py "$@")
    say "$(printf '%q ' "${command[@]}")"
    supervise torchrun "${command[@]}"
else
    by_nodes=$(gpus_by_nodes "$job")
    [ -n "${NPROC_PER_NODE:-}" ] || [ "$(awk '{ print $2 }' <<<"$by_nodes" | sort -u | wc -l)" -le 1 ] ||
        refuse "not equally many GPUs on each node (${by_nodes//$'\n'/; }): ask for --gres=gpu:N or --gpus-per-node=N," \
            "not --gpus, or set NPROC_PER_NODE"
    # The id is unique to this start, so that it does not meet the rest of an earlier one.
    read -r first < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    command+=(--nnodes="$nodes" --rdzv_backend=c10d --rdzv_endpoint="$first:$(free_port "$SLURM_JOB_ID")"
        --rdzv_id="${SLURM_JOB_ID}_${SLURM_RESTART_COUNT:-0}" train.py "$@")
    say "$(printf '%q ' "${command[@]}")"
    # A failure of one node ends the others at once; after the successful end of one they have 60 s.
    unset BASH_ENV # the shell on each node would run that file first
    forget_tasks
    on_each_node=(srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --cpu-bind=none --export=ALL --wait=60
        --kill-on-bad-exit=1)
    [ "$gpus" -eq 0 ] || on_each_node+=(--gres=gpu:$((gpus < processes ? gpus : processes))) # all, not one task's share
    on_each_node+=(bash -c)
    "${on_each_node[@]}" "$(declare -f say refuse check_node); check_node \"\$@\"" \
        submit.sh "$first" "$PWD" "${command[0]}" || exit 2
    supervise srun "${on_each_node[@]}" \
        "$(declare -f say listen supervise hand_on tell launches); listen; supervise torchrun \"\$@\"" \
        submit.sh "${command[@]}"
fi
code=$?
say "exit code $code"

# ---- the end: queue the job again, or exit with the code that gives the job the right state in Slurm --------------
SCONTROL_SHOW_JOB=$(show_job) python -m metrics.jobs.requeue after "$code" "$caught" "$@"
verdict=$?
if [ "$verdict" -eq 10 ] && [ "$caught" = TERM ]; then
    say "not queued again from here, as TERM was received meanwhile"
elif [ "$verdict" -eq 10 ]; then
    say "queueing job $job again"
    trap '' TERM # scontrol requeue sends it to this shell
    for pause in 5 20 0; do # Slurm's controller may be restarting
        scontrol requeue "$job" && break
        [ "$pause" -ne 0 ] || say "Slurm refuses to queue it again: to continue, submit the same command"
        sleep "$pause"
    done
fi
[ "$verdict" -eq 0 ] || [ "$code" -ne 0 ] || code=75 # not finished: the job's state must not be COMPLETED
exit "$code"
