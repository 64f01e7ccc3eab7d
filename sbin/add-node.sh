#!/usr/bin/env bash
# Starts one node that joins a running cluster: add-node.sh [--replace NODE [--accept-loss]] [-c CONF_DIR] [overrides]
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
"$root/sbin/env.sh"
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} MALLOC_ARENA_MAX=2
exec "${IOTDB_VENV:-$root/.venv}/bin/python" -m iotdb_cluster.tools.node -a "$@"
