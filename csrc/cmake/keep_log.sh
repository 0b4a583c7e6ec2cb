#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# keep_log.sh COMPILER ARGUMENTS... -o OBJECT: runs the compiler and keeps what it says on stderr in OBJECT.log beside the
# object, for csrc/cmake/check_resources.py. ptxas's figures are not passed on, everything else is.
object=
previous=
for argument in "$@"; do
  [ "$previous" = -o ] && object=$argument
  previous=$argument
done
log=${object:-/dev/null}
[ -n "$object" ] && log=$object.log
"$@" 2>"$log"
status=$?
grep -vE '^ptxas info|bytes stack frame,|^$' "$log" >&2
exit $status
