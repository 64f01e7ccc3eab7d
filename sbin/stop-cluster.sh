#!/usr/bin/env bash
# Stops the cluster that start-cluster.sh started: stop-cluster.sh [--data DIR]
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
"$root/sbin/env.sh"
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
exec "${IOTDB_VENV:-$root/.venv}/bin/python" -m iotdb_cluster.tools.loopback stop "$@"
