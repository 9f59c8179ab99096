#!/usr/bin/env bash
# Trains sim4seg-s from ImageNet's weights and makes its package: under two hours on two cores. Stages that were begun go on.
# DATA, CACHE, RUNS and VERSION may come from the environment.
set -euo pipefail
cd "$(dirname "$0")/.."
data=${DATA:-../shared/data} cache=${CACHE:-.cache/train} runs=${RUNS:-.cache/runs} version=${VERSION:-0.4.0}
package=inference/packages/sim4seg-s
recipe=inference/training/recipes/sim4seg_s.toml
if [ ! -f "$data/train/manifest.csv" ]; then
    echo "The training images are not here: $data/train/manifest.csv. Name their folder: make train-small DATA=/path" >&2
    exit 1
fi
mkdir -p "$cache" "$runs"
threads=$(nproc)
export OMP_NUM_THREADS=1 # one process for each core is twice as fast as one process with two threads

module() { .venv/bin/python -m "inference.$1" "${@:2}"; }
stage() { # NAME: one process of one thread
    module training.train --stage "$1" --recipe "$recipe" --data "$data" --cache "$cache" --out "$runs/$1" "${@:2}"
}
together() { # NAME: one process for each core, gradients averaged
    local rank pids=()
    export MASTER_ADDR=127.0.0.1 MASTER_PORT=29533 WORLD_SIZE=$threads
    for ((rank = 0; rank < threads; rank++)); do
        RANK=$rank stage "$@" &
        pids+=($!)
    done
    wait "${pids[@]}"
    unset WORLD_SIZE
}
weights() { printf '%s' "$runs/$1/weights.safetensors"; }

module training.tokenizer --data "$data" --cache "$cache" --out "$package/tokenizer.json"
stage segmenter &
stage lvlm
wait
together joint --start "$(weights lvlm)" --start "$(weights segmenter)" # the later one has the last word
stage refine --start "$(weights joint)" # as it was run: one process
together sharpen --start "$(weights refine)"
last=$(weights sharpen)
module export.parity --weights "$last" --data "$data/train" --package "$package" --version "$version"
module training.evaluate --package "$package" --data "$data/train" --json "$package/metrics.json" --ablate 40 --processes "$threads"
module export.package --package "$package" --version "$version"
.venv/bin/python scripts/readme_results.py --write
