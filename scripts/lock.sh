#!/usr/bin/env bash
# Writes locks/*.txt from pyproject.toml: exact pins with hashes, for every platform that Python 3.11+ runs on.
# Pins that are still allowed stay; `scripts/lock.sh --upgrade` takes the newest. torch is pinned by hand in
# locks/torch.txt: builds of one version differ by machine, and so do their hashes.
set -euo pipefail
cd "$(dirname "$0")/.."
compile() {
    local output=$1
    shift
    .venv/bin/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes \
        --no-header --no-annotate --output-file "$output" "$@"
}
compile locks/dev.txt --extra cpu --extra postgres --extra redis --extra s3 --extra train --group dev \
    --no-emit-package torch "$@"
compile locks/default.txt --extra cpu --group build --constraints locks/dev.txt
compile locks/node.txt --extra postgres --extra redis --extra s3 --group build --constraints locks/dev.txt
compile locks/worker.txt --extra cpu --extra postgres --extra redis --extra s3 --group build --constraints locks/dev.txt
compile locks/worker-gpu.txt --extra gpu --extra postgres --extra redis --extra s3 --group build --constraints locks/dev.txt
