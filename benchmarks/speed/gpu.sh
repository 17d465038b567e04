#!/usr/bin/env bash
# What a GPU computes is checked first, then timed: benchmarks/speed/gpu.sh [--quick], from the project's root.
# Takes the Python in $PYTHON, python3 by default, with torch for CUDA, pytest and the project's dependencies.
set -euo pipefail
python=${PYTHON:-python3}
# Shapes aren't asserted here, nor is any service of the other tests started.
"$python" -m pytest --noconftest -o addopts="" -p no:cacheprovider -q tests/unit/test_gpu.py
"$python" -m benchmarks.speed.gpu "$@"
