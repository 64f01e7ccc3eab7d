#!/usr/bin/env bash
# Starts one node in the foreground: start-node.sh [printgc] [-c CONF_DIR] [overrides]; see docs/tools.md
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
"$root/sbin/env.sh"
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} MALLOC_ARENA_MAX=2
exec "${IOTDB_VENV:-$root/.venv}/bin/python" -m iotdb_cluster.tools.node "$@"
