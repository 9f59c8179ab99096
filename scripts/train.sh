#!/usr/bin/env bash
# Trains sim4seg-s from ImageNet's weights and makes its package: five hours on two cores. Stages that were begun go on.
# DATA, CACHE, RUNS, PACKAGES and VERSION may come from the environment. HURRY=0.004 goes the whole way with so much of
# every stage's time, to see that each step runs; name PACKAGES of your own then, for what it makes is worth nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
data=${DATA:-../shared/data} cache=${CACHE:-.cache/train} runs=${RUNS:-.cache/runs} version=${VERSION:-0.7.0}
package=${PACKAGES:-inference/packages}/sim4seg-s
recipe=inference/training/recipes/sim4seg_s.toml
if [ ! -f "$data/train/manifest.csv" ]; then
    echo "The training images are not here: $data/train/manifest.csv. Name their folder: make train-small DATA=/path" >&2
    exit 1
fi
mkdir -p "$cache" "$runs" "$package"
made=$runs
. scripts/training_steps.sh

module training.tokenizer --data "$data" --cache "$cache" --out "$package/tokenizer.json"
stage segmenter &
stage lvlm
wait
together joint --start "$(weights lvlm)" --start "$(weights segmenter)" # the later one has the last word
stage refine --start "$(weights joint)" # as it was run: one process
sharpen refine
module export.parity --weights "$(weights sharpen)" --data "$data/train" --package "$package" --version "$version" "${gate[@]}"
module training.evaluate --package "$package" --data "$data/train" --json "$package/metrics.json" --ablate 40 --processes "$threads" "${few[@]}"
module export.package --package "$package" --version "$version"
[ -n "${HURRY:-}" ] || .venv/bin/python scripts/readme_results.py --write
