#!/usr/bin/env bash
# Looks at a cluster: nodetool.sh [-h HOST] [-p PORT] COMMAND; nodetool.sh help
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
"$root/sbin/env.sh"
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
exec "${IOTDB_VENV:-$root/.venv}/bin/python" -m iotdb_cluster.tools.nodetool "$@"
