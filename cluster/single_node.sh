#!/usr/bin/env bash
# One machine, one GPU (or none): the single-A100 baseline from a checkout, without Docker.
#   cluster/single_node.sh                                        the paper on one A100 80 GB
#   cluster/single_node.sh experiments/tiny.yaml --limit 8        another experiment, with arguments of `unidetox run`
# UNIDETOX_VENV: where the virtual environment is or shall be (~/unidetox-venv). Gated models: HF_TOKEN or HF_TOKEN_PATH.
# Ray is started by the run itself, on 127.0.0.1, with a token that lives in its processes. The same command goes on after an
# interruption.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${UNIDETOX_VENV:-$HOME/unidetox-venv}"
experiment="${1:-$here/experiments/single_a100.yaml}"
[[ $# -eq 0 ]] || shift

export RAY_AUTH_MODE=token
unset RAY_ADDRESS # this machine alone, also where a cluster's address is set
"$here/cluster/setup_node.sh" "$venv"

# Options of `run` are none of `doctor`'s; settings (key=value) are.
settings=()
for argument in "$@"; do
  [[ "$argument" == -* || "$argument" != *=* ]] || settings+=("$argument")
done
# A line that failed ends it here, before hours of work; UNIDETOX_SKIP_DOCTOR=1 goes on all the same.
if [[ -z "${UNIDETOX_SKIP_DOCTOR:-}" ]]; then
  "$venv/bin/unidetox" doctor "$experiment" "${settings[@]}"
fi
exec "$venv/bin/unidetox" run "$experiment" "$@"
