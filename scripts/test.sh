#!/usr/bin/env bash
# Runs the tests in an environment of its own. Arguments go to pytest: scripts/test.sh tests/ops -k mamba
# `scripts/test.sh -m figure -s` measures the figures that the project promises (minutes, a quiet machine).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
ensure_environment test
exec "$VENV/bin/python" -m pytest "$@"
