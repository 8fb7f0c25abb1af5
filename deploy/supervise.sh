#!/bin/sh
# Keeps a server running where nothing else does: no systemd, no Kubernetes.
#
#   deploy/supervise.sh launch_server --model-path MODEL --port 30000
#
# A command that fails is started again, after a pause that doubles from 1 s to 60 s and is 1 s again once it has run for a minute. It
# is not started again when it ended as it was told to (0: drained, 4: drained with cancelled requests) or could not be otherwise next
# time (2: wrong flags). SIGTERM and SIGINT go to the command, whose exit code becomes this script's.
# SUPERVISE_PAUSE and SUPERVISE_STEADY change the first pause and the minute, in seconds.
set -u
[ $# -gt 0 ] || { echo "usage: $0 COMMAND [ARGUMENT ...]" >&2; exit 2; }
first=${SUPERVISE_PAUSE:-1} steady=${SUPERVISE_STEADY:-60}
pause=$first stopping= child=
stop() { stopping=1; [ -z "$child" ] || kill -s "$1" "$child" 2>/dev/null; }
trap 'stop TERM' TERM
trap 'stop INT' INT
while :; do
  began=$(date +%s)
  "$@" &
  child=$!
  # A trapped signal ends wait early: wait again until the command is really gone.
  while :; do
    wait "$child"; code=$?
    kill -0 "$child" 2>/dev/null || break
  done
  child=
  case $code in 0 | 2 | 4) exit "$code" ;; esac
  [ -z "$stopping" ] || exit "$code"
  [ $(($(date +%s) - began)) -lt "$steady" ] || pause=$first
  echo "supervise: exit code $code, starting again in $pause s" >&2
  sleep "$pause" &
  child=$!
  wait "$child"
  child=
  [ -z "$stopping" ] || exit "$code"
  pause=$((pause * 2))
  [ "$pause" -le 60 ] || pause=60
done
