# Sourced by run.sh and test.sh: makes or reuses the virtual environment. Call: ensure_environment EXTRA
# NVSUBQ_VENV (default .venv) says where it lies, PYTHON which interpreter makes it; pip's own variables
# (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS, ...) act as they always do.

VENV="${NVSUBQ_VENV:-.venv}"

fail() {
    echo "error: $*" >&2
    exit 1
}

supported() { "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; }

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        supported "$PYTHON" || fail "PYTHON (=$PYTHON) must be a Python >= 3.10 and < 3.14"
        echo "$PYTHON"
        return
    fi
    for candidate in python3 python3.13 python3.12 python3.11 python3.10 python; do
        if command -v "$candidate" >/dev/null && supported "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    found=$(python3 --version 2>/dev/null || echo "no python3")
    fail "nvsubq needs Python >= 3.10 and < 3.14, found: $found. Set PYTHON=/path/to/python."
}

# What the environment was made from, and for which checkout: when that changes, pip runs again.
fingerprint() { { pwd && cat pyproject.toml constraints.txt && find csrc -type f -exec cksum {} + | sort; } | cksum; }

ensure_environment() {
    extra="$1"
    now="$(fingerprint)"
    for stamp in "$VENV/.nvsubq-$extra" "$VENV/.nvsubq-test"; do # test includes train and docs
        if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$now" ]; then
            return
        fi
    done
    if [ ! -x "$VENV/bin/python" ]; then
        python=$(find_python) || exit 1
        echo "Making the environment $VENV with $("$python" --version) ..."
        "$python" -m venv "$VENV" || fail "$python could not make $VENV; is its venv module installed?"
    fi
    if ! "$VENV/bin/python" -c 'import torch' 2>/dev/null; then
        echo "Installing torch and what '$extra' needs. Unless pip finds a CPU build, torch comes with CUDA: 2 to 3 GB."
        echo "For a CPU build, stop here and set PIP_INDEX_URL or PIP_EXTRA_INDEX_URL to PyTorch's CPU index."
    fi
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$extra]" ||
        fail "pip could not install nvsubq[$extra]; the lines above say why. Run the same command to go on from here."
    fingerprint >"$VENV/.nvsubq-$extra"
}
