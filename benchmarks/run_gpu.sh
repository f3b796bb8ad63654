#!/bin/bash
# Five benchmarks on one GPU, and one table of them. Should take under eight minutes on an H200; not timed there yet.
#
#   benchmarks/run_gpu.sh [--out DIR] [flags of train.py: --data-root DIR, --data glyphs]
#   benchmarks/run_gpu.sh --rehearse     the same with a model of a few thousand weights, also without a GPU
#
# PYTHON chooses the interpreter; paths are relative to the project's folder. A benchmark that fails is named and left
# out of the table, and the exit code is 1.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

python=${PYTHON:-python} out=benchmarks/results rehearse=
flags=() compile=()
while [ $# -gt 0 ]; do
    case $1 in
    --out) out=${2:?--out needs a folder} && shift ;;
    --rehearse) rehearse=1 ;;
    *) flags+=("$1") ;;
    esac
    shift
done
mkdir -p "$out"

large=(--rounds 3 --passes 1 --steps 8 --warmup 3) small=(--rounds 5 --passes 1 --steps 10 --warmup 3)
overhead=(--rounds 5 --passes 1 --steps 20) input=(--rounds 3 --seconds 0.5 --presets small large --share-of-step)
sampling=(--rounds 2 --manners ddpm-600 dpm++-20) startup=(--rounds 1 --warm-cache)
if [ "$rehearse" ]; then
    flags+=(--block-out-channels 8 16 --norm-num-groups 4 --layers-per-block 1 --no-mid-attention --resolution 28
        --batch-size 8 --val-images 20 --diffusion-steps 20 --sample-steps 10)
    compile=(--no-compile)
    large=(--rounds 1 --passes 1 --steps 2 --warmup 1) small=("${large[@]}") overhead=("${large[@]}")
    input=(--rounds 1 --seconds 0.1 --presets small --share-of-step)
    sampling=(--rounds 1 --images 2 --manners ddpm-20 dpm++-10) startup=(--rounds 1)
fi

failed=()
measure() { # NAME FLAG…: one benchmark, its own JSON in $out
    local name=$1 preset=$2 begun=$SECONDS
    shift 2
    "$python" -m "benchmarks.$name" "$@" ${preset:+--preset "$preset"} "${flags[@]}" "${compile[@]}" \
        --out "$out/$name${preset:+_$preset}_run_gpu.json" || failed+=("$name${preset:+ $preset}")
    echo "== $name $preset: $((SECONDS - begun)) s"
}

measure train_step small "${small[@]}"
measure train_step large "${large[@]}"
measure input_pipeline "" "${input[@]}"
measure overhead small "${overhead[@]}"
measure sampling small "${sampling[@]}"
compile=() # the start is measured with and without
measure startup large "${startup[@]}"
"$python" -m benchmarks.summary --folder "$out"
echo "== all: $SECONDS s; the files are in $out"
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}" >&2
    exit 1
fi
