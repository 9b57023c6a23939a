#!/usr/bin/env bash
# All tests: what needs no lab, then what brings up lab hosts, then the traffic tests once more with programs attached as
# clsact filters. Two workers each: much of a test is waiting.
set -uo pipefail
cd "$(dirname "$0")/.."
failed=0
run() { .venv/bin/pytest -q -n 2 --dist loadfile "$@" || failed=1; }
run tests --ignore tests/e2e --ignore tests/vm
run tests/e2e
echo "traffic tests with clsact filters:"
BPFLEET_TEST_NO_TCX=1 run tests/e2e/test_traffic_*.py
exit $failed
