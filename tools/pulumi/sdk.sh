#!/bin/sh
# Writes the Python SDK from provider/schema.json into FOLDER (default: provider/sdk/python).
#
#   tools/pulumi/sdk.sh [FOLDER]
#
# The generator (sdkgen/) is built when it or its dependencies change and then kept in the cache: in seconds where
# ensure.sh has built the CLI, which shares its packages; in two or three minutes where Go has compiled nothing yet.
# BPFLEET_CACHE overrides ~/.cache/bpfleet.
set -eu

here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
root=$here/../..
cache=${BPFLEET_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/bpfleet}
sources=$(cat "$here/go.mod" "$here/go.sum" "$here/sdkgen/main.go" | sha256sum | cut -c 1-16)
generator=$cache/sdkgen-$sources

if [ ! -x "$generator" ]; then
    go=$("$here/go.sh")
    echo "sdk.sh: building the generator of the Python SDK with $("$go" version)" >&2
    mkdir -p "$cache"
    built=$(mktemp "$generator.XXXXXX")
    trap 'rm -f "$built"' EXIT
    trap 'exit 1' INT TERM
    (cd "$here" && "$go" build -o "$built" -ldflags "-s -w" ./sdkgen) >&2
    mv "$built" "$generator"
fi
"$generator" "$root/provider/schema.json" "${1:-$root/provider/sdk/python}"
