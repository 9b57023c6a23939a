#!/usr/bin/env bash
# All tests: what needs no lab in parallel; then what brings up lab hosts, one after the other, and beside it the traffic
# tests once more with programs attached as clsact filters.
set -uo pipefail
cd "$(dirname "$0")/.."
failed=0
.venv/bin/pytest -q -n 2 --dist loadfile tests --ignore tests/e2e --ignore tests/vm || failed=1
log=$(mktemp)
trap 'rm -f "$log"' EXIT
BPFLEET_TEST_NO_TCX=1 .venv/bin/pytest -q tests/e2e/test_traffic_*.py >"$log" 2>&1 &
beside=$!
.venv/bin/pytest -q tests/e2e || failed=1
wait "$beside" || failed=1
printf '\ntraffic tests with clsact filters:\n' && cat "$log"
exit $failed
