# Sourced by demo.sh and test.sh: makes .venv at the top of the checkout and installs the library into it.
# Usage: . scripts/setup_env.sh [EXTRA]   PYTHON names another interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() { echo "set-up: $*" >&2; exit 1; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.13 python3.12 python3.11 python3 python}; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    fail "needs Python 3.11, 3.12 or 3.13; found $(${PYTHON:-python3} --version 2>&1 || true). Install one, or name it: PYTHON=/path/to/python3.12"
}

requirement=".${1:+[$1]}"
if [ ! -x .venv/bin/python ] || ! .venv/bin/python -c 'import sys' 2>/dev/null; then
    python=$(find_python)
    "$python" -c 'import venv, ensurepip' 2>/dev/null || fail "$python lacks the venv module; on Debian: apt-get install python3-venv"
    free_mb=$(df -Pm . | awk 'NR == 2 {print $4}')
    [ "$free_mb" -ge 4000 ] || fail "needs 4 GB of free disk for .venv, found $free_mb MB in $PWD"
    echo "set-up: making .venv with $("$python" --version)" >&2
    rm -rf .venv
    "$python" -m venv .venv
fi

# What is installed is what these files ask for: run again after a change of either.
stamp=$(cat setup.cfg pyproject.toml constraints.txt scripts/setup_env.sh scripts/torch_index.sh | cksum)
if [ "$(cat ".venv/installed-${1:-base}" 2>/dev/null)" != "$stamp" ]; then
    . scripts/torch_index.sh
    torch_index .venv/bin/python
    echo "set-up: installing croplem_hf$requirement into .venv; the first time takes some minutes" >&2
    .venv/bin/python -m pip install --quiet --disable-pip-version-check ${index[@]+"${index[@]}"} \
        -c constraints.txt "torch==$(sed -n 's/^torch==//p' constraints.txt)"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e "$requirement"
    echo "$stamp" > ".venv/installed-${1:-base}"
fi
