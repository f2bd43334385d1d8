#!/usr/bin/env bash
# Runs a command, and again where it ends by no fault of its own:
#   launch/again.sh launch/gpu.sh python main.py train --workdir=runs/coco_lvis ...
# 0 is the end, and 1 a mistake that would only be made again, as are 126 and 127 (it
# cannot be run, or is not there). After any other code (75: another process has gone or
# the run hung; above 128: it was killed) the command is started again, at most RESTARTS
# times in a row. Before that it waits for BACKOFF seconds, then twice as long each time,
# five minutes at most. One that has run for an hour counts from the beginning. SIGTERM
# and Ctrl-C go on to the command, which saves.
set -uo pipefail

restarts=${RESTARTS:-20}
first=${BACKOFF:-10}
child=
stopped=
told=
tell() {
  stopped=1
  if [ -n "$child" ]; then kill -TERM "$child" 2>/dev/null && told=1; fi
}
trap tell TERM INT

failures=0
while true; do
  begin=$SECONDS
  "$@" &
  child=$!
  # A signal that came before there was somebody to hand it to.
  if [ -n "$stopped" ] && [ -z "$told" ]; then tell; fi
  wait "$child"
  code=$?
  # A signal to this script ends the wait early, while the command still saves; the code
  # is then that of the signal, also where the command has ended meanwhile.
  if [ -n "$stopped" ]; then
    while kill -0 "$child" 2>/dev/null; do wait "$child"; done
    wait "$child"
    exit $?
  fi
  child=
  case "$code" in
    0 | 1 | 126 | 127) exit "$code" ;;
  esac
  if [ $((SECONDS - begin)) -ge 3600 ]; then failures=0; fi
  failures=$((failures + 1))
  if [ "$failures" -gt "$restarts" ]; then
    echo "ended with code $code, for the $failures. time in a row; giving up" >&2
    exit "$code"
  fi
  pause=$first
  for ((i = 1; i < failures && pause < 300; i++)); do pause=$((2 * pause)); done
  if [ "$pause" -gt 300 ]; then pause=300; fi
  echo "ended with code $code; again in $pause s ($failures of $restarts)" >&2
  sleep "$pause" &
  wait $!
  if [ -n "$stopped" ]; then exit "$code"; fi
done
