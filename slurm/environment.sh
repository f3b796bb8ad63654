# shellcheck shell=bash
# Sourced by submit.sh in the project folder: loads modules and finds the Python that will train. Each candidate is
# checked (slurm/check.py). An environment that was asked for and does not work is refused; one that merely happens
# to be there is passed over, with a line. The order is at the end of this file and in docs/slurm.md, "The environment
# of a job".
# Sets $python, its path, and ${inside[@]}, the words before a command that is to run in the container.

python='' inside=() fault=''
python() { "${inside[@]}" "$python" "$@"; }

# Takes the environment in folder $1, described by $2, if its Python can train; else leaves the reason in $fault.
take() {
    local found
    if [ ! -x "$1/bin/python" ]; then
        fault="$2: there is no $1/bin/python"
    elif ! found=$("$1/bin/python" slurm/check.py "$1" 2>&1); then
        fault="$2: $(tail -n 1 <<<"$found")"
    else
        say "$2: $(tail -n 1 <<<"$found")"
        python=$1/bin/python
        export PATH="$1/bin:$PATH" # first: `conda activate` of an active environment does not reorder PATH
        return 0
    fi
    return 1
}

take_venv() {
    local folder
    folder=$(realpath -s -- "$1")
    # shellcheck source=/dev/null
    [ ! -f "$folder/bin/activate" ] || source "$folder/bin/activate"
    export VIRTUAL_ENV=$folder # `activate` contains the old path if the folder was moved
    take "$folder" "$2"
}

take_conda() {
    [ -x "${CONDA_EXE:-}" ] || CONDA_EXE=$(type -P conda)
    if [ -z "$CONDA_EXE" ] && [ -d "$1" ]; then
        take "$(realpath -s -- "$1")" "$2" # a folder needs no conda
    elif [ -z "$CONDA_EXE" ]; then
        fault="$2: there is no conda here"
        return 1
    elif eval "$("$CONDA_EXE" shell.bash hook)" && conda activate "$1" 2>/dev/null; then
        take "$CONDA_PREFIX" "$2"
    else
        fault="$2: conda has no environment of this name ('conda info --envs' lists them)"
        return 1
    fi
}

# Makes commands run in the container $1. Its python sees the project and every folder outside it that the other
# arguments (or a file of settings among them) name; for a folder that does not exist yet, the one above it.
take_container() {
    local image=$1 runtime path found
    local -a named=(data checkpoints logs metrics/output)
    local -A mounts=(["$PWD"]="")
    runtime=$(type -P apptainer || type -P singularity) ||
        refuse "CONTAINER=$image: there is no apptainer and no singularity here; if they are in a module, set MODULES"
    [[ -e $image || $image == *://* ]] || refuse "CONTAINER=$image: there is no such file, seen from $PWD"
    for path in "${@:2}"; do
        named+=("${path#--*=}")
        case $path in
        *.json | *.y*ml)
            mapfile -t -O ${#named[@]} named < <(grep -oP '[\s":]\K/[^"]+' -- "${path#--*=}" 2>/dev/null) ;;
        esac
    done
    for path in "${named[@]}"; do
        path=$(realpath -m -- "$path")
        until [ -d "$path/" ]; do path=${path%/*}; done
        case $path/ in / | // | "$(realpath .)"/*) ;; *) mounts[$path]="" ;; esac
    done
    inside=("$runtime" exec --nv --pwd "$PWD")
    for path in "${!mounts[@]}"; do inside+=(--bind "$path"); done
    inside+=("$image")
    python=python
    # These would add packages of the host's Pythons; the container sees ~/.local too.
    unset PYTHONPATH
    export PYTHONNOUSERSITE=1
    found=$(python slurm/check.py "" 2>&1) || refuse "CONTAINER=$image: $(tail -n 1 <<<"$found")"
    say "CONTAINER=$image: $(tail -n 1 <<<"$found")"
}

# The folder of the active environment; of several, the first in PATH. Conda's base does not count: in many shells it is
# active by default.
active_environment() {
    local folder folders
    IFS=: read -ra folders <<<"$PATH"
    for folder in "${folders[@]}"; do
        if [ "$folder" = "${VIRTUAL_ENV:-none}/bin" ]; then
            echo "$VIRTUAL_ENV"
            return
        elif [ "$folder" = "${CONDA_PREFIX:-none}/bin" ] && [ "${CONDA_DEFAULT_ENV:-}" != base ]; then
            echo "$CONDA_PREFIX"
            return
        fi
    done
}

# Loads $MODULES, which must all exist; if it is not set, those of the cluster that this was written for.
load_modules() {
    local name
    local -a names
    read -ra names <<<"${MODULES-cuda/12.6 python/miniforge-25.3.0}"
    # Shells other than bash do not export their `module`.
    # shellcheck source=/dev/null
    command -v module >/dev/null || [ ! -r "${MODULESHOME:-}/init/bash" ] || source "$MODULESHOME/init/bash"
    command -v module >/dev/null || [ -z "${MODULES:-}" ] || refuse "MODULES=$MODULES: there is no command 'module' here"
    command -v module >/dev/null || return 0
    for name in "${names[@]}"; do
        if module load "$name"; then
            say "module $name"
        elif [ -n "${MODULES:-}" ]; then
            refuse "MODULES=$MODULES: there is no module $name here ('module avail' lists them)"
        else
            say "no module $name here, continuing without it"
        fi
    done
}

passed_over() { say "$fault"; return 1; }

for name in PYTHONHOME PYTHONSAFEPATH PYTHONINSPECT; do
    [ -z "${!name:-}" ] || say "unsetting $name=${!name}, as it breaks every environment"
    unset "$name"
done
active=$(active_environment) # before a module puts its own Python first
load_modules
if [ -n "${CONTAINER:-}" ]; then
    [ -z "${VENV:-}" ] || refuse "CONTAINER=$CONTAINER and VENV=$VENV: set one of them"
    take_container "$CONTAINER" "$@"
elif [ -n "${VENV:-}" ]; then
    take_venv "$VENV" "VENV=$VENV" || refuse "$fault"
elif [ -n "${CONDA_ENV:-}" ]; then
    take_conda "$CONDA_ENV" "CONDA_ENV=$CONDA_ENV" || refuse "$fault"
elif [ -n "$active" ] && { take "$active" "active environment $active" || passed_over; }; then :
elif take_conda superstition-sd "conda environment superstition-sd" || passed_over; then :
elif take_venv .venv "$PWD/.venv" || passed_over; then :
else
    refuse "no environment is active, and none of the usual ones works: run 'make install' in $PWD, or set VENV" \
        "(a folder) or CONDA_ENV"
fi
[ -z "${PYTHONPATH:-}" ] || say "PYTHONPATH=$PYTHONPATH: what is there comes before the packages of the environment"
