#!/bin/sh
# What ssh runs for a question; ssh takes a program, and no arguments for it.
exec "$PYREMOTEDATA_PYTHON" -I -S "$PYREMOTEDATA_ASKPASS" "$@"
