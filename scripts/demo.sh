#!/usr/bin/env bash
# Sets everything up in .venv and runs `croplem demo`; the results lie in croplem-demo/ unless --out says otherwise.
set -euo pipefail
here=$PWD
out=(--out "$PWD/croplem-demo")
for argument in "$@"; do [ "${argument%%=*}" != --out ] || out=(); done
. "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
croplem=$PWD/.venv/bin/croplem
cd "$here"
exec "$croplem" demo ${out[@]+"${out[@]}"} "$@"
