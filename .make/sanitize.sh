#!/bin/sh
# Runs tests under compute-sanitizer. It slows kernels a hundredfold and the start of a process by seconds, so every tool has each test in a
# process of its own, JOBS at a time; while five ran on an H200, other programs found less than 1 GB of its memory free. A line tells how each
# ended; LOGS has what it printed. Exit code 1: a tool or a test found something, a test did not end in LIMIT seconds, or a pattern matches none.
#
#	sanitize.sh BINARY LOGS TOOL... <PATTERNS      in the test's folder; a line of PATTERNS is one of -test.run
#
# The library's kernels are its authors' to mend, and not looked at. racecheck is told to follow barriers through others: attn_prefill_sm90's
# warps meet at one, then a single thread tells the copying warp that all have read its work, which it else takes for a race.
set -u
: "${SANITIZER:=compute-sanitizer}" "${JOBS:=$(nproc)}" "${LIMIT:=600}"
export SANITIZER LIMIT TOKAMAK_REQUIRE_GPU=1

if [ "$1" = one ]; then
	binary=$2 logs=$3 tool=$4 tests=$5
	log="$logs/$tool-$(printf %s "$tests" | tr -c 'A-Za-z0-9' _).txt"
	more=
	[ "$tool" = racecheck ] && export TOKAMAK_TEST_BARE=1 && more=--racecheck-indirect-barrier-dependency
	begin=$(date +%s)
	timeout "$LIMIT" "$SANITIZER" --tool "$tool" $more --error-exitcode 9 --print-limit 20 --kernel-name-exclude 'regex=.*(nvjet|cutlass|cublas|xmma|flop_probe).*' \
		"$binary" -test.short -test.v -test.timeout 0 -test.run "$tests" >"$log" 2>&1
	code=$?
	case $tests in */*) passed='^  *--- PASS' ;; *) passed='^--- PASS' ;; esac
	if [ $code = 0 ] && ! grep -q -e "$passed" "$log"; then code='no test'; fi
	echo "$tool $tests: $code after $(($(date +%s) - begin)) s, $(grep -o 'SUMMARY: .*' "$log" | tail -1)"
	[ "$code" = 0 ]
	exit
fi

binary=$1 logs=$2
shift 2
mkdir -p "$logs"
while read -r tests; do
	for tool in "$@"; do printf '%s\0%s\0' "$tool" "$tests"; done
done | xargs -0 -n 2 -P "$JOBS" sh "$0" one "$binary" "$logs" || exit 1
