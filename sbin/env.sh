#!/usr/bin/env bash
# Makes the isolated environment in .venv on first use, or brings it up to date. `env.sh --dev` adds what tests need.
# Prints a line for each step; prints nothing where there is nothing to do. Exit 1 with the reason on failure.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${IOTDB_VENV:-$root/.venv}
lock=server
[ "${1:-}" = --dev ] && lock=dev

say() { printf 'env: %s\n' "$*" >&2; }
die() { printf 'env: %s\n' "$*" >&2; exit 1; }

stamp=$venv/.installed-$lock
if [ -f "$stamp" ] && cmp -s "$stamp" "$root/requirements/$lock.lock"; then exit 0; fi
[ "$lock" = server ] && cmp -s "$venv/.installed-dev" "$root/requirements/dev.lock" 2>/dev/null && exit 0

python=${PYTHON:-}
if [ -z "$python" ]; then
  for name in python3 python3.14 python3.13 python3.12 python3.11; do
    if command -v "$name" >/dev/null && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      python=$name
      break
    fi
  done
fi
[ -n "$python" ] || die "Python 3.11 or later is needed and was not found: apt install python3"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || die "$python is older than Python 3.11"
"$python" -c 'import venv, ensurepip' 2>/dev/null ||
  die "$python lacks venv or pip: apt install python3-venv python3-pip"

if [ ! -x "$venv/bin/python" ]; then
  say "making an isolated environment in $venv with $("$python" --version)"
  "$python" -m venv "$venv" || die "could not make it: see above"
fi
say "installing the pinned packages of requirements/$lock.lock (once; about half a minute)"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input --require-hashes \
  --requirement "$root/requirements/$lock.lock" || die "could not install them: see above"
if [ "$lock" = dev ]; then
  say "installing the stock client for the tests"
  # Its own pins allow neither Python 3.12 nor numpy 2: installed without them, with what it really needs.
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input --no-deps \
    --requirement "$root/requirements/clients.txt" || die "could not install it: see above"
fi
cp "$root/requirements/$lock.lock" "$stamp"
say "ready"
