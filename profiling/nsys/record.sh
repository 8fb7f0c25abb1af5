#!/bin/sh
# record.sh one-batch|server [nsys arguments] -- [program arguments]
# record.sh sessions | stop [session]
#
# Records the OneBatch benchmark or the server with Nsight Systems: kernels (each node of a CUDA graph), CUDA calls and our NVTX ranges.
# Whatever stands before -- goes to nsys after our own arguments, so that it wins over them: --delay=60 --duration=70.
# Environment: NSYS (the program, default nsys), OUT (report, default .cache/nsys/NAME), MODEL (--model-path), STEPS (record only the
# steps that the program itself chooses: its --profile pass, or the server's /start_profile with activity CUDA_PROFILER), BIN (a program
# that is built already), SESSION (its name, default one-batch or server).
set -eu
nsys=${NSYS:-nsys}
go=${GO:-go}
command -v "$nsys" >/dev/null || {
	echo "there is no $nsys: see docs/profiling.md for how to install Nsight Systems, or set NSYS to its path" >&2
	exit 127
}
what=${1:-}
[ $# -gt 0 ] && shift
case $what in
sessions) exec "$nsys" sessions list ;;
stop)
	session=${1:-$("$nsys" sessions list | awk '$NF ~ /^(profile|server|one-batch)/ {s = $NF} END {print s}')}
	[ -n "$session" ] || { echo "nsys records nothing: start it first" >&2; exit 1; }
	exec "$nsys" stop --session="$session"
	;;
one-batch | server) ;;
*) sed -n '2,3s/^# //p' "$0" >&2; exit 2 ;;
esac

own=0 # arguments of nsys that the caller gave
for a; do
	[ "$a" = -- ] && break
	own=$((own + 1))
done
[ $own -lt $# ] || set -- "$@" --
# Rotate the caller's nsys arguments to the end, leave -- out: "$@" becomes program arguments, then nsys arguments.
i=0
while [ $i -lt $own ]; do
	a=$1; shift
	set -- "$@" "$a"
	i=$((i + 1))
done
shift # --
program=$(($# - own))
out=${OUT:-.cache/nsys/$what}
mkdir -p "$(dirname "$out")" .bin
bin=${BIN:-}
if [ $what = one-batch ]; then
	[ -n "$bin" ] || { bin=.bin/benchmarks.test; $go test -c -tags cuda -o "$bin" ./benchmarks; }
	set -- -test.run='^$' -test.bench=OneBatch "$@"
	program=$((program + 2))
	if [ -n "${STEPS:-}" ]; then
		# Decode steps, unless the caller names another stage: nsys stops after the first range.
		set -- --profile --profile-activities=CUDA_PROFILER --profile-stage=decode --profile-steps="$STEPS" "$@"
		program=$((program + 4))
	fi
else
	[ -n "$bin" ] || { bin=.bin/launch_server; $go build -tags cuda -o "$bin" ./engine/cmd/launch_server; }
fi
if [ -n "${MODEL:-}" ]; then
	set -- --model-path="$MODEL" "$@"
	program=$((program + 1))
fi
case $bin in /*) ;; *) bin=$PWD/$bin ;; esac
# Program arguments to the end, behind the program: nsys arguments come first.
set -- "$@" "$bin"
i=0
while [ $i -lt $program ]; do
	a=$1; shift
	set -- "$@" "$a"
	i=$((i + 1))
done
[ -z "${STEPS:-}" ] || set -- --capture-range=cudaProfilerApi --capture-range-end=stop "$@"
export TOKAMAK_NVTX=${TOKAMAK_NVTX:-1}
# The session has a name, so that `record.sh stop` finds it.
set -- --session-new="${SESSION:-$what}" --trace=cuda,nvtx,osrt --trace-fork-before-exec=true --cuda-graph-trace=node --output="$out" --force-overwrite=true "$@"
exec "$nsys" profile "$@"
