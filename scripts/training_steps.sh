# What train.sh and train_more.sh are made of; sourced by both, which set data, cache, recipe and made (where runs lie).
if [ -n "${HURRY:-}" ] && [ -z "${PACKAGES:-}" ]; then
    echo "HURRY makes models that are worth nothing: name a folder of your own for them, PACKAGES=/path" >&2
    exit 1
fi
threads=$(nproc)
export OMP_NUM_THREADS=1 # one process for each core is twice as fast as one process with two threads

module() { .venv/bin/python -m "inference.$1" "${@:2}"; }
few=(${HURRY:+--limit 2})   # images of each data set that a model made in a hurry is measured on
gate=(${HURRY:+--ungated}) # such a model says nothing twice
weights() { printf '%s' "$made/$1/weights.safetensors"; }
stage() { # STAGE [--start FILE]: one process of one thread; it lies in FOLDER, or under the stage's name
    module training.train --stage "$1" --recipe "$recipe" --data "$data" --cache "$cache" \
        --out "$made/${FOLDER:-$1}" ${HURRY:+--hurry "$HURRY"} "${@:2}"
}
together() { # STAGE [--start FILE]: one process for each core, gradients averaged
    local rank pids=()
    export MASTER_ADDR=127.0.0.1 MASTER_PORT=29533 WORLD_SIZE=$threads
    for ((rank = 0; rank < threads; rank++)); do
        RANK=$rank stage "$@" &
        pids+=($!)
    done
    wait "${pids[@]}"
    unset WORLD_SIZE
}
sharpen() { # FROM: six turns, each at the full rate again; from the fourth on from the mean so far
    local turn last mean stage
    last=$(weights "$1") mean=$(weights sharpen)
    for turn in 1 2 3; do
        FOLDER=sharpen_$turn together sharpen --start "$last"
        last=$(weights "sharpen_$turn")
    done
    module training.average --out "$mean" "$(weights sharpen_2)" "$last"
    for turn in 4 5 6; do
        stage=sharpen
        if [ "$turn" = 6 ]; then stage=polyps; fi
        cp "$mean" "$made/before_$turn.safetensors"
        FOLDER=sharpen_$turn together "$stage" --start "$made/before_$turn.safetensors"
        module training.average --out "$mean" "$made/before_$turn.safetensors" "$(weights "sharpen_$turn")"
    done
}
