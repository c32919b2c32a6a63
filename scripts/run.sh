#!/usr/bin/env bash
# Trains the default experiment (MNIST-5k, bidirectional Mamba) in an environment of its own.
# Arguments go to `nvsubq train`: scripts/run.sh core=s5 trainer.max_epochs=2
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
ensure_environment train
exec "$VENV/bin/nvsubq" train "$@"
