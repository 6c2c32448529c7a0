#!/usr/bin/env bash
# The whole thing in one command: set up, serve sample reads over SFTP on this machine, run a
# Snakemake workflow and Dask tasks over them, check the results, print a summary.
#
#   bash workflows/quickstart.sh [--samples N] [--sample-mib N] [--cores N]
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
unset PYTHONPATH PYTHONHOME

bash "$here/setup.sh" all
exec "$here/../.venv/bin/python" "$here/quickstart.py" "$@"
