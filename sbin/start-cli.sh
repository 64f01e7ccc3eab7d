#!/usr/bin/env bash
# The SQL shell: start-cli.sh [-h HOST] [-p PORT] [-u USER] [-pw PASSWORD] [-e STATEMENTS]; see docs/tools.md
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
"$root/sbin/env.sh"
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
exec "${IOTDB_VENV:-$root/.venv}/bin/python" -m iotdb_cluster.tools.cli "$@"
