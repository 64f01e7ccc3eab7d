#!/usr/bin/env bash
# Removes a member, dead or alive, from a running cluster: remove-node.sh IP META_PORT [-c CONF_DIR]; see docs/tools.md
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
"$root/sbin/env.sh"
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
exec "${IOTDB_VENV:-$root/.venv}/bin/python" -m iotdb_cluster.tools.remove "$@"
