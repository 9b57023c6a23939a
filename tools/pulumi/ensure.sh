#!/bin/sh
# Prints the folder of a Pulumi CLI that works: one on PATH, else the cached build, else a build made now (about four
# minutes on two cores). There is no wheel or Debian package of it; go.mod and go.sum here pin what is built.
#
#   PATH=$(tools/pulumi/ensure.sh):$PATH
#
# The folder holds `pulumi` and `pulumi-language-yaml`. BPFLEET_CACHE overrides ~/.cache/bpfleet.
set -eu

cli_version=3.259.0
yaml_version=1.38.0

here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
cache=${BPFLEET_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/bpfleet}
built=$cache/pulumi-$cli_version

say() { echo "ensure.sh: $*" >&2; }

# At least the version that everything here was tried with, and its language host for YAML beside it or on PATH.
good() {
    [ -x "$1/pulumi" ] || return 1
    [ -x "$1/pulumi-language-yaml" ] || command -v pulumi-language-yaml >/dev/null 2>&1 || return 1
    found=$(PULUMI_SKIP_UPDATE_CHECK=1 "$1/pulumi" version 2>/dev/null) || return 1
    found=${found#v}
    [ "$(printf '%s\n%s\n' "$cli_version" "${found%%-*}" | sort -V | head -n 1)" = "$cli_version" ]
}

on_path=$(command -v pulumi 2>/dev/null || true)
if [ -n "$on_path" ]; then
    on_path=$(dirname -- "$(readlink -f -- "$on_path")")
    if good "$on_path"; then
        echo "$on_path"
        exit 0
    fi
    say "the pulumi on PATH ($on_path) is older than $cli_version or has no pulumi-language-yaml beside it: not used"
fi
if good "$built"; then
    echo "$built"
    exit 0
fi

mkdir -p "$cache"
work=$(mktemp -d "$cache/building.XXXXXX")
trap 'chmod -R u+w "$work" 2>/dev/null; rm -rf "$work"' EXIT
trap 'exit 1' INT TERM
go=$("$here/go.sh")
say "building pulumi $cli_version with $("$go" version); this takes some minutes, once"
mkdir "$work/out"
cd "$here"
"$go" build -o "$work/out/pulumi" \
    -ldflags "-s -w -X github.com/pulumi/pulumi/sdk/v3/go/common/version.Version=v$cli_version" \
    github.com/pulumi/pulumi/pkg/v3/cmd/pulumi >&2
"$go" build -o "$work/out/pulumi-language-yaml" \
    -ldflags "-s -w -X github.com/pulumi/pulumi-yaml/pkg/version.Version=$yaml_version" \
    github.com/pulumi/pulumi-yaml/cmd/pulumi-language-yaml >&2
# In one step, so that a build that was interrupted is never taken for one that works.
rm -rf "$built"
mv "$work/out" "$built"
good "$built" || { say "the CLI that was built does not run: $built"; exit 1; }
echo "$built"
