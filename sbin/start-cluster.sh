#!/usr/bin/env bash
# Starts a cluster of processes on this machine: start-cluster.sh [N] [--replication R] [--data DIR]
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
"$root/sbin/env.sh"
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
exec "${IOTDB_VENV:-$root/.venv}/bin/python" -m iotdb_cluster.tools.loopback start "$@"
