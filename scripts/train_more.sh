#!/usr/bin/env bash
# Trains one more model beside sim4seg-s and makes its package: scripts/train_more.sh prs-med-s | medseg-r-s |
# lisa-s | sim4seg-after-s | unet-s. Stages that were begun go on. prs-med-s, medseg-r-s and sim4seg-after-s start
# from what scripts/train.sh left in RUNS, else from the weights in the shipped package. DATA, CACHE, RUNS, PACKAGES,
# VERSION and HURRY (see train.sh) may come from the environment.
set -euo pipefail
cd "$(dirname "$0")/.."
model=${1:?name a model: prs-med-s, medseg-r-s, lisa-s, sim4seg-after-s or unet-s}
data=${DATA:-../shared/data} cache=${CACHE:-.cache/train} runs=${RUNS:-.cache/runs} version=${VERSION:-0.1.0}
packages=${PACKAGES:-inference/packages}
folder=$packages/$model
recipe=inference/training/recipes/$(tr - _ <<<"$model").toml
if [ ! -f "$data/train/manifest.csv" ]; then
    echo "The training images are not here: $data/train/manifest.csv. Name their folder: DATA=/path" >&2
    exit 1
fi
mkdir -p "$cache" "$runs/$model"
made=$runs/$model
. scripts/training_steps.sh

start_of() { # STAGE of sim4seg-s
    local left
    left=$runs/$1/weights.safetensors
    if [ ! -f "$left" ]; then
        left=$runs/restored/weights.safetensors
        [ -f "$left" ] || module export.restore --package inference/packages/sim4seg-s --out "$left" >&2
    fi
    printf '%s' "$left"
}
finish() { # WEIGHTS FAMILY [more for the gate]
    mkdir -p "$folder"
    cp inference/packages/sim4seg-s/tokenizer.json "$folder/"
    module export.parity --weights "$1" --data "$data/train" --package "$folder" --version "$version" \
        --family "$2" "${gate[@]}" "${@:3}"
    module training.evaluate --package "$folder" --data "$data/train" --json "$folder/metrics.json" \
        --variants all --variant-limit 40 --processes "$threads" "${few[@]}"
    module export.package --package "$folder" --version "$version"
}
sim4seg() { # [more for the gate]: every stage of sim4seg-s, on this recipe
    together segmenter
    together lvlm
    together joint --start "$(weights lvlm)" --start "$(weights segmenter)"
    together refine --start "$(weights joint)"
    sharpen refine
    finish "$(weights sharpen)" sim4seg "$@"
}

case $model in
prs-med-s)
    together fusion --start "$(start_of joint)"
    together end_to_end --start "$(weights fusion)"
    finish "$(weights end_to_end)" prs_med
    ;;
medseg-r-s)
    together attend --start "$(start_of sharpen)"
    together adapt --start "$(weights attend)"
    together listen --start "$(weights adapt)"
    finish "$(weights listen)" medseg_r
    ;;
lisa-s) sim4seg --top-k 0 ;;
sim4seg-after-s)
    together refine --start "$(start_of sharpen)"
    finish "$(weights refine)" sim4seg
    ;;
unet-s)
    together unet
    module training.evaluate --unet "$(weights unet)" --data "$data/train" --json "$made/metrics.json" "${few[@]}"
    ;;
*)
    echo "There is no model $model." >&2
    exit 2
    ;;
esac
