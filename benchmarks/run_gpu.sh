#!/bin/bash
# The benchmarks that need a GPU, and the tests that do, on one GPU in at most nine minutes; then a table of them.
#
#   benchmarks/run_gpu.sh [--out DIR] [flags of train.py: --data-root DIR, --data glyphs]
#   benchmarks/run_gpu.sh --only "startup tests" --minutes 5    some of it, in another time
#   benchmarks/run_gpu.sh --only quality --data-root DIR        what `small` draws after a minute of training
#   benchmarks/run_gpu.sh --rehearse     the same with a model of a few thousand weights, also without a GPU
#
# The most telling come first, and each writes its file as soon as it has its figures, so that a run that is cut short
# leaves what it has. None may take longer than its limit, nor go on after the nine minutes. PYTHON chooses the
# interpreter; paths are relative to the project's folder. What fails is named, and the exit code is 1.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

python=${PYTHON:-python} out=benchmarks/results rehearse='' minutes=9
only='train_step input_pipeline sampling tests startup' # in this order
known="$only quality"
flags=() data_root=''
while [ $# -gt 0 ]; do
    case $1 in
    --out) out=${2:?--out needs a folder} && shift ;;
    --only) only=${2:?--only needs names} && shift ;;
    --minutes) minutes=${2:?--minutes needs a whole number} && shift ;;
    --rehearse) rehearse=1 ;;
    --data-root) data_root=${2:?--data-root needs a folder} && flags+=("$1" "$2") && shift ;;
    *) flags+=("$1") ;;
    esac
    shift
done
[[ $minutes =~ ^[0-9]+$ ]] || { echo "error: --minutes $minutes: give a whole number" >&2 && exit 2; }
most=$((60 * minutes))
for name in $only; do
    [[ " $known " == *" $name "* ]] || { echo "error: --only $name: there are $known" >&2 && exit 2; }
done
[[ " $only " == *" quality "* && ! $data_root ]] && echo "error: --only quality: give --data-root, with EMNIST" >&2 && exit 2
mkdir -p "$out"

# Compiling a big preset takes two minutes: sides and presets compile beside each other, and are timed in turn.
step=(--presets large small --rounds 3 --passes 1 --steps 6 --warmup 2 --kernels --sides "plain loop"
    "accelerate loop" "bare model" "ours under DDP" "small:ours, CUDA graphs")
input=(--rounds 3 --seconds 0.5 --presets small large)
sampling=(--rounds 2 --manners ddpm-600 dpm++-20 --no-compile) startup=(--rounds 1 --warm-cache) compile=()
quality=(--preset small --steps 850) # about a minute
if [ "$rehearse" ]; then
    flags+=(--block-out-channels 8 16 --norm-num-groups 4 --layers-per-block 1 --no-mid-attention --resolution 28
        --batch-size 8 --val-images 20 --diffusion-steps 20 --sample-steps 10)
    compile=(--no-compile) most=3600
    step+=(--rounds 1 --steps 2 --warmup 1) input=(--rounds 1 --seconds 0.1 --presets small)
    sampling=(--rounds 1 --images 2 --manners ddpm-20 dpm++-10 --no-compile) startup=(--rounds 1)
    quality=(--preset tiny --steps 4 --per-class 2)
fi

failed=()
try() { # LIMIT NAME COMMAND…: for at most LIMIT seconds, and no longer than is left of the whole
    local limit=$1 name=$2 begun=$SECONDS left=$((most - SECONDS))
    shift 2
    [[ " $only " == *" ${name%% *} "* ]] || return 0
    [ "$rehearse" ] && limit=$left
    timeout $((left < 5 ? 5 : left < limit ? left : limit)) "$@" || failed+=("$name")
    echo "== $name: $((SECONDS - begun)) s"
}
measure() { # LIMIT NAME FLAG…: a benchmark that writes a file of its own
    local limit=$1 name=$2
    shift 2
    try "$limit" "$name" "$python" -m "benchmarks.${name%% *}" "$@" "${flags[@]}" --out "$out/${name// /_}_run_gpu.json"
}

measure 330 train_step "${step[@]}" "${compile[@]}"
measure 60 input_pipeline "${input[@]}" "${compile[@]}"
measure 90 "sampling small" --preset small "${sampling[@]}"
"$python" -m benchmarks.summary --folder "$out"
try 120 tests env "TORCHINDUCTOR_COMPILE_THREADS=${TORCHINDUCTOR_COMPILE_THREADS:-4}" "$python" -m pytest -q -n 4 \
    --dist loadgroup -p no:cacheprovider tests/gpu/test_gpu.py tests/gpu/test_gpu_speed.py
measure 300 "startup large" --preset large "${startup[@]}"
try 400 quality "$python" -m benchmarks.speedrun "${quality[@]}" --recipes fast --seeds 0 --data-root "$data_root" \
    --out "$out/quality_run_gpu.json"
echo "== all: $SECONDS s; the files are in $out"
if [ ${#failed[@]} -gt 0 ]; then
    printf 'failed: %s\n' "$(IFS=, && echo "${failed[*]}")" >&2
    exit 1
fi
