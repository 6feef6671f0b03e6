# Sourced by setup_env.sh and test_versions.sh. On Linux the package index has only CUDA builds of torch, several GB;
# its own index has the CPU build. Usage: torch_index PYTHON   puts the options of pip for it into the array `index`,
# or none: on other systems, with PIP_NO_INDEX, and where that index cannot be reached, as behind a mirror of packages,
# which then has to hold torch itself. A probe, since pip retries an index that cannot be reached for minutes.
torch_index() {
    local address=https://download.pytorch.org/whl/cpu
    index=()
    if [ "$(uname -s)" = Linux ] && [ -z "${PIP_NO_INDEX:-}" ] && "$1" - "$address/torch/" <<'PROBE' 2>/dev/null
import sys, urllib.request
urllib.request.urlopen(urllib.request.Request(sys.argv[1], method="HEAD"), timeout=5)
PROBE
    then
        index=(--extra-index-url "$address")
    fi
}
