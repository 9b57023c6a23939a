#!/usr/bin/env bash
# All tests: what needs no lab, then what brings up lab hosts, then the traffic tests once more with programs attached as
# clsact filters. Two workers each: much of a test is waiting.
set -uo pipefail
cd "$(dirname "$0")/.."
failed=0

# The kernel waits 14 ms for an RCU grace period for each program that is attached, and tests attach tens of thousands.
# Nothing here is about that wait.
setting=/sys/kernel/rcu_expedited
if [ -w $setting ]; then
	before=$(cat $setting)
	trap 'echo "$before" >$setting' EXIT
	echo 1 >$setting
fi

run() { .venv/bin/pytest -q -n 2 --dist loadfile "$@" || failed=1; }
run tests --ignore tests/e2e --ignore tests/vm
run tests/e2e
echo "traffic tests with clsact filters:"
BPFLEET_TEST_NO_TCX=1 run tests/e2e/test_traffic_*.py
exit $failed
