# What train.sh and train_more.sh are made of; sourced by both, which set data, cache, recipe and made (where runs lie).
threads=$(nproc)
export OMP_NUM_THREADS=1 # one process for each core is twice as fast as one process with two threads

module() { .venv/bin/python -m "inference.$1" "${@:2}"; }
weights() { printf '%s' "$made/$1/weights.safetensors"; }
stage() { # STAGE [--start FILE]: one process of one thread; it lies in FOLDER, or under the stage's name
    module training.train --stage "$1" --recipe "$recipe" --data "$data" --cache "$cache" \
        --out "$made/${FOLDER:-$1}" "${@:2}"
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
sharpen() { # FROM: three turns of the stage, each at the full rate again, and the mean of the last two
    local turn last
    last=$(weights "$1")
    for turn in 1 2 3; do
        FOLDER=sharpen_$turn together sharpen --start "$last"
        last=$(weights "sharpen_$turn")
    done
    module training.average --out "$(weights sharpen)" "$(weights sharpen_2)" "$last"
}
