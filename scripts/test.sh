#!/usr/bin/env bash
# All checks: style, types, tests. Further arguments go to pytest:
#   bash scripts/test.sh -k resume
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-$(bash scripts/setup.sh dev)}
export PYTHON OMP_NUM_THREADS=1

"$PYTHON" -m ruff check
"$PYTHON" -m ruff format --check
"$PYTHON" -m pyright --pythonpath "$PYTHON"
exec "$PYTHON" -m pytest -q "$@"
