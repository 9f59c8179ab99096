#!/usr/bin/env bash
# Trains sim4seg-s from ImageNet's weights and makes its package: three hours on two cores. Stages that were begun go on.
# DATA, CACHE, RUNS and VERSION may come from the environment.
set -euo pipefail
cd "$(dirname "$0")/.."
data=${DATA:-../shared/data} cache=${CACHE:-.cache/train} runs=${RUNS:-.cache/runs} version=${VERSION:-0.5.0}
package=inference/packages/sim4seg-s
recipe=inference/training/recipes/sim4seg_s.toml
if [ ! -f "$data/train/manifest.csv" ]; then
    echo "The training images are not here: $data/train/manifest.csv. Name their folder: make train-small DATA=/path" >&2
    exit 1
fi
mkdir -p "$cache" "$runs"
made=$runs
. scripts/training_steps.sh

module training.tokenizer --data "$data" --cache "$cache" --out "$package/tokenizer.json"
stage segmenter &
stage lvlm
wait
together joint --start "$(weights lvlm)" --start "$(weights segmenter)" # the later one has the last word
stage refine --start "$(weights joint)" # as it was run: one process
sharpen refine
module export.parity --weights "$(weights sharpen)" --data "$data/train" --package "$package" --version "$version"
module training.evaluate --package "$package" --data "$data/train" --json "$package/metrics.json" --ablate 40 --processes "$threads"
module export.package --package "$package" --version "$version"
.venv/bin/python scripts/readme_results.py --write
