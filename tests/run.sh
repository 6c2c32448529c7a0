#!/usr/bin/env bash
# Set up, then lint, type-check, build the pages and test.
#
#   bash tests/run.sh [--full] [ARGUMENTS OF PYTEST]
#
# --full also runs the tests marked "full", which take longer. Exits 0 when everything passed.
set -uo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

marker=(-m "not full")
arguments=()
for argument in "$@"; do
    if [ "$argument" = --full ]; then marker=(); else arguments+=("$argument"); fi
done

bash workflows/setup.sh dev || exit
bin=$PWD/.venv/bin
failed=()

step() {
    local name=$1
    shift
    printf '\n== %s\n' "$name"
    "$@" || failed+=("$name")
}

step "ruff check" "$bin/ruff" check
step "ruff format" "$bin/ruff" format --check
step "mypy" "$bin/mypy"
# Warnings are errors: see mkdocs.yml.
step "docs" env NO_MKDOCS_2_WARNING=1 "$bin/mkdocs" --quiet build
# Three at a time, whole files: much of a test is waiting for servers.
step "pytest" "$bin/python" -m pytest -n 3 --dist loadfile ${marker[@]+"${marker[@]}"} ${arguments[@]+"${arguments[@]}"}

printf '\n'
if [ ${#failed[@]} -gt 0 ]; then
    printf 'failed: %s\n' "${failed[@]}"
    exit 1
fi
echo "all passed in $SECONDS s"
