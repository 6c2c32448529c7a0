#!/usr/bin/env bash
# Test the Dask example on the SLURM that is here; says so and does nothing where there is none.
#
#   bash workflows/slurm/test_dask.sh [ARGUMENTS OF PYTEST]
#
# PYTHON names the interpreter; it needs pyremotedata-suite[dev] and dask-jobqueue. The checkout
# must be seen by all nodes, or SLURM_TEST_SHARED name a folder that is.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${PYTHON:-python3}
[ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ] && python=.venv/bin/python

if ! command -v sbatch >/dev/null || ! timeout 20 sinfo -h >/dev/null 2>&1; then
    echo "there is no SLURM here: nothing is tested"
    exit 0
fi
if ! "$python" -c "import dask_jobqueue" 2>/dev/null; then
    echo "dask-jobqueue is missing: $python -m pip install dask-jobqueue" >&2
    exit 1
fi
exec "$python" -m pytest -q tests/test_dask_slurm.py "$@"
