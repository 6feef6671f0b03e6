#!/usr/bin/env bash
# Sets everything up in .venv, checks the style and runs the tests; arguments go to pytest.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh" test
.venv/bin/ruff check .
exec .venv/bin/python -m pytest "$@"
