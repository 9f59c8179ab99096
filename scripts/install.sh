#!/usr/bin/env bash
# Installs a lock file and this package into .venv: `scripts/install.sh default|dev`.
# `dev` takes torch too (TORCH_FLAGS goes to pip for it, for example an index that has CPU builds).
set -euo pipefail
cd "$(dirname "$0")/.."
pip() { .venv/bin/python -m pip --disable-pip-version-check -qq "$@"; }

echo "Installing locks/$1.txt"
pip install --require-hashes --no-deps -r "locks/$1.txt"
if [ "$1" = dev ]; then
    echo "Installing $(tail -n 1 locks/torch.txt)"
    # shellcheck disable=SC2086  # flags are several words
    pip install ${TORCH_FLAGS:-} -r locks/torch.txt
fi
pip install --no-deps --no-build-isolation --editable .
