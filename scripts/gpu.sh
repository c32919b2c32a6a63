#!/usr/bin/env bash
# Runs the tests that need a GPU, in the Python that PYTHON names (default python3), which must find nvsubq, its
# library for CUDA and torch for CUDA. Arguments go to pytest: scripts/gpu.sh -k conv1d
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python="${PYTHON:-python3}"
"$python" -c 'import torch; raise SystemExit(not torch.cuda.is_available())' || {
    echo "gpu: torch finds no CUDA device" >&2
    exit 1
}
"$python" -c 'from nvsubq.ops import native; raise SystemExit(native.inactive("cuda"))'
exec "$python" -m pytest -m gpu -q tests/ops tests/bench tests/cores/test_{cuda_steps,gpu_cores}.py "$@"
