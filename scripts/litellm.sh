#!/usr/bin/env bash
# Make a virtual environment with LiteLLM and its proxy, for the tests that have it speak with llmproxy:
#
#   scripts/litellm.sh DIR && LITELLM_VENV=DIR make test TESTS=tests/integration/test_clients_litellm.py
#
# It has 750 MB and would force its own versions on the other packages, so it is not among what `make test` installs.
# PYTHON chooses the Python, LITELLM_VERSION the version.
set -euo pipefail

dir=${1:?usage: scripts/litellm.sh DIR}
version=${LITELLM_VERSION:-1.108.7}
python=${PYTHON:-$("$(dirname "$0")/find_python.sh")}

say() { echo "litellm: $*" >&2; }

# Written last: an installation that was broken off is made again.
if [[ $(cat "$dir/.version" 2>/dev/null) == "$version" ]]; then
    say "$dir has LiteLLM $version"
    exit 0
fi
say "installing LiteLLM $version into $dir"
rm -rf "$dir"
"$python" -m venv "$dir"
"$dir/bin/python" -m pip --quiet --disable-pip-version-check install "litellm[proxy]==$version"
echo "$version" >"$dir/.version"
