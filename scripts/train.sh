#!/usr/bin/env bash
# Trains sim4seg-s from nothing and makes its package: about two hours on two cores. Stages that were begun go on.
# DATA, CACHE, RUNS and VERSION may come from the environment.
set -euo pipefail
cd "$(dirname "$0")/.."
data=${DATA:-../shared/data} cache=${CACHE:-.cache/train} runs=${RUNS:-.cache/runs} version=${VERSION:-0.1.0}
package=inference/packages/sim4seg-s
recipe=inference/training/recipes/sim4seg_s.toml
if [ ! -f "$data/train/manifest.csv" ]; then
    echo "The training images are not here: $data/train/manifest.csv. Name their folder: make train DATA=/path" >&2
    exit 1
fi
mkdir -p "$cache" "$runs"
threads=$(nproc)

module() { .venv/bin/python -m "inference.$1" "${@:2}"; }
stage() {
    module training.train --stage "$1" --recipe "$recipe" --data "$data" --cache "$cache" --out "$runs/$1" \
        --threads "$threads" "${@:2}"
}
module training.tokenizer --data "$data" --cache "$cache" --out "$package/tokenizer.json"
stage segmenter
stage lvlm
stage joint --start "$runs/segmenter/weights.safetensors" --start "$runs/lvlm/weights.safetensors"
stage tune --start "$runs/joint/weights.safetensors"
module export.parity --weights "$runs/tune/weights.safetensors" --data "$data" --package "$package" --version "$version"
module training.evaluate --package "$package" --data "$data" --out "$package/metrics.json" --ablate 40 --processes "$threads"
module export.package --package "$package" --version "$version"
.venv/bin/python scripts/readme_results.py --write
