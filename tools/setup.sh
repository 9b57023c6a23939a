#!/usr/bin/env bash
# Installs what building, testing and the demo need on Debian 12, as root, and says what it installs. Run again, it does
# nothing. Everything lands in Debian packages, in .venv beside this checkout and in the cache folder ~/.cache/bpfleet.
#
#   tools/setup.sh          what the demo, the tests and the benches need
#   tools/setup.sh --check  only say what is missing; exit 1 if anything is
set -euo pipefail
cd "$(dirname "$0")/.."

readonly UV_VERSION=0.13.9
cache=${XDG_CACHE_HOME:-$HOME/.cache}/bpfleet

# package:file that it brings. A file that is there is never installed again, whoever brought it.
packages=(
	clang-19:/usr/bin/clang-19                              # eBPF objects
	llvm-19:/usr/bin/llvm-strip-19                          # drops debug data from them, keeps BTF
	libbpf-dev:/usr/include/bpf/bpf_helpers.h               # headers of the objects
	libbpf1:/usr/lib/x86_64-linux-gnu/libbpf.so.1           # what the loader binds
	linux-libc-dev:/usr/include/linux/bpf.h                 # kernel interface headers
	gcc:/usr/bin/gcc                                        # the bench harness
	libc6-dev:/usr/include/stdio.h                          # the same
	libelf-dev:/usr/include/libelf.h                        # the same
	openssh-server:/usr/sbin/sshd                           # lab hosts
	openssh-client:/usr/bin/ssh                             # tests
	iproute2:/usr/sbin/ip                                   # lab hosts
	iputils-ping:/usr/bin/ping                              # traffic
	nftables:/usr/sbin/nft                                  # what benches compare with
	iptables:/usr/sbin/iptables-legacy                      # the same
	make:/usr/bin/make                                      # the bench harness
	procps:/usr/sbin/sysctl                                 # lab hosts
	util-linux:/usr/bin/nsenter                             # lab hosts
	python3:/usr/bin/python3                                # the agent on lab hosts
	python3-venv:/usr/share/doc/python3-venv/copyright      # uv's own environment
	sudo:/usr/bin/sudo                                      # tests of logins that are not root
	git:/usr/bin/git                                        # tests of the checkout itself
	ca-certificates:/etc/ssl/certs/ca-certificates.crt      # package downloads
)

missing=()
for entry in "${packages[@]}"; do
	[ -e "${entry#*:}" ] || missing+=("${entry%%:*}")
done
if [ "${1:-}" = --check ]; then
	if [ ${#missing[@]} -gt 0 ]; then echo "missing Debian packages: ${missing[*]}"; exit 1; fi
	if [ ! -x .venv/bin/bpfleet ]; then echo "missing: .venv"; exit 1; fi
	exit 0
fi
if [ ${#missing[@]} -gt 0 ]; then
	if [ "$(id -u)" != 0 ]; then
		echo "setup: these Debian packages are missing: ${missing[*]}. Run as root, or install them first." >&2
		exit 1
	fi
	echo "setup: installing Debian packages: ${missing[*]}"
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

uv=$(command -v uv || true)
if [ -z "$uv" ]; then
	uv=$cache/uv-$UV_VERSION/bin/uv
	if [ ! -x "$uv" ]; then
		echo "setup: installing uv $UV_VERSION into $cache"
		/usr/bin/python3 -m venv "$cache/uv-$UV_VERSION"
		"$cache/uv-$UV_VERSION/bin/pip" install --quiet "uv==$UV_VERSION"
	fi
fi
if ! "$uv" sync --quiet --locked --extra controller --check 2>/dev/null; then
	echo "setup: installing Python packages of uv.lock into .venv"
	"$uv" sync --quiet --locked --extra controller --python 3.11
fi

if ! mountpoint -q /sys/fs/bpf; then
	echo "setup: mounting bpffs at /sys/fs/bpf"
	mount -t bpf bpf /sys/fs/bpf
fi
tools/pulumi/ensure.sh >/dev/null
