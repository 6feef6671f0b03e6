#!/usr/bin/env bash
# Runs the tests at both ends of what setup.cfg allows: the oldest Hugging Face libraries that it names, and the newest
# of everything that the package index has. Each end has an environment of its own, .venv-oldest and .venv-newest.
# Usage: scripts/test_versions.sh [oldest|newest|both] [PYTEST ARGUMENTS]   PYTHON names another interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/torch_index.sh

ends=${1:-both}
shift || true
case $ends in
    both) ends="oldest newest" ;;
    oldest | newest) ;;
    *) echo "usage: scripts/test_versions.sh [oldest|newest|both] [PYTEST ARGUMENTS]" >&2; exit 2 ;;
esac

# "transformers >= 5.18" of setup.cfg as "transformers == 5.18.*", for the libraries whose interfaces move.
oldest() {
    sed -n 's/^ *\(datasets\|huggingface_hub\|safetensors\|transformers\) >= \([0-9.]*\)$/\1 == \2.*/p' setup.cfg
}

failed=()
for end in $ends; do
    python=.venv-$end/bin/python
    [ -x "$python" ] || "${PYTHON:-python3}" -m venv ".venv-$end"
    torch_index "$python"
    # A file, not a process substitution, which is gone when pip looks at it.
    limits=.venv-$end/limits.txt
    sed -n '/^torch==/p' constraints.txt > "$limits"
    versions=(--constraint "$limits")
    if [ "$end" = oldest ]; then
        oldest >> "$limits"
    else
        versions+=(--upgrade --upgrade-strategy eager)
    fi
    "$python" -m pip install --quiet --disable-pip-version-check ${index[@]+"${index[@]}"} "${versions[@]}" -e ".[test]"
    echo "== $end: $("$python" -m pip freeze | grep -iE '^(transformers|datasets|huggingface.hub|torch|numpy)==' | xargs)"
    "$python" -m pytest "$@" || failed+=("$end")
done
[ ${#failed[@]} -eq 0 ] || { echo "failed with the ${failed[*]} versions" >&2; exit 1; }
