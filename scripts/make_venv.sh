#!/usr/bin/env bash
# Makes .venv with the first Python 3.11 or newer that has venv; says what to do where there is none.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -x .venv/bin/python ] && .venv/bin/python -c 'import pip' 2>/dev/null && exit 0

find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3 python3.11 python3.12 python3.13 python3.14 /usr/bin/python3; do
        command -v "$candidate" >/dev/null || continue
        "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || continue
        "$candidate" -c 'import ensurepip, venv' 2>/dev/null && echo "$candidate" && return
    done
    return 1
}

if ! python=$(find_python); then
    scripts/system_packages.sh python || true
    python=$(find_python) || {
        echo "No Python 3.11 or newer with its venv module was found. On Debian 12:" >&2
        echo "    apt-get install python3 python3-venv" >&2
        echo "or name one: make PYTHON=/path/to/python3.11 ..." >&2
        exit 1
    }
fi
echo "Making .venv with $("$python" --version) ($python)"
"$python" -m venv .venv
