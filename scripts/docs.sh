#!/usr/bin/env bash
# Sets everything up in .venv and builds the documentation into docs/_build; a warning is an error.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh" docs
.venv/bin/python -m sphinx -b html -E -W --keep-going -q docs docs/_build "$@"
echo "docs/_build/index.html"
