#!/usr/bin/env bash
# All tests: what needs no lab in parallel, then what brings up lab hosts, one after the other.
set -uo pipefail
cd "$(dirname "$0")/.."
failed=0
.venv/bin/pytest -q -n 2 --dist loadfile tests --ignore tests/e2e --ignore tests/vm || failed=1
.venv/bin/pytest -q tests/e2e || failed=1
exit $failed
