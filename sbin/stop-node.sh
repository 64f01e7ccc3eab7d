#!/usr/bin/env bash
# Ends a node: stop-node.sh [CONF_DIR] [-p PORT] [-t SECONDS]
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
"$root/sbin/env.sh"
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
exec "${IOTDB_VENV:-$root/.venv}/bin/python" -m iotdb_cluster.tools.stop "$@"
