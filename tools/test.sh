#!/usr/bin/env bash
# All tests, and beside them the traffic tests once more with programs attached as clsact filters. Four workers on two
# cores: much of a test in the lab is waiting, during which those that only compute go on (tests/conftest.py has the order).
set -uo pipefail
cd "$(dirname "$0")/.."
failed=0
said=$(mktemp)
compiled=$(mktemp -d)

# The kernel waits 14 ms for an RCU grace period for each program that is attached, and tests attach tens of thousands.
# Nothing here is about that wait.
setting=/sys/kernel/rcu_expedited
before=
if [ -w $setting ]; then before=$(cat $setting); fi
leave() {
	kill $(jobs -p) 2>/dev/null
	rm -rf "$said" "$compiled"
	if [ -n "$before" ]; then echo "$before" >$setting; fi
}
trap leave EXIT
if [ -n "$before" ]; then echo 1 >$setting; fi

# Tests start thousands of Python processes. What those import is compiled once, and kept until the end.
unset PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX=$compiled

run() { .venv/bin/pytest -q --dist loadfile --no-loadscope-reorder "$@"; }
BPFLEET_TEST_NO_TCX=1 run -n 1 tests/e2e/test_traffic_*.py >"$said" 2>&1 &
clsact=$!
run -n 3 tests --ignore tests/vm || failed=1
wait "$clsact" || failed=1
echo "traffic tests with clsact filters:"
cat "$said"
exit $failed
