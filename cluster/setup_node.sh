#!/usr/bin/env bash
# A virtual environment with this project's pinned packages, on any Linux machine. Run again it does nothing.
#   cluster/setup_node.sh [FOLDER]        default: ~/unidetox-venv
# Used by single_node.sh, ray_up_*.yaml and skypilot.yaml; on Slurm run it once on the login node, with FOLDER on shared storage.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${1:-$HOME/unidetox-venv}"
stamp="$venv/.unidetox-$(cat "$here/pyproject.toml" "$here/constraints.txt" | sha256sum | cut -c1-16)"

if [[ -e "$stamp" ]]; then
  echo "ready: $venv"
  exit 0
fi

# The pins are of CPython 3.11; 3.12 and 3.13 take them too.
python=""
for candidate in python3.11 python3.12 python3.13 python3; do
  if command -v "$candidate" >/dev/null \
    && "$candidate" -c 'import sys, ensurepip, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
    python="$candidate"
    break
  fi
done
if [[ -z "$python" ]]; then
  echo "no Python 3.11 to 3.13 with venv here: install one (apt-get install python3-venv, or a module of your site)" >&2
  exit 1
fi

umask 022 # what is installed may be read by all; what runs write is private all the same
[[ -x "$venv/bin/python" ]] || "$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e "$here" -c "$here/constraints.txt"
touch "$stamp"
echo "ready: $venv"
