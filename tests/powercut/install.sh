#!/bin/sh
# What the power-cut tests need beside Python. As root on a Debian-like system it is installed if it
# is missing; elsewhere nothing happens, and the tests are skipped with a count and a reason.
set -u
need=""
command -v strace >/dev/null 2>&1 || need="$need strace"
command -v mkfs.xfs >/dev/null 2>&1 || need="$need xfsprogs"
command -v mkfs.ext4 >/dev/null 2>&1 || need="$need e2fsprogs"
if [ -z "$need" ]; then
    echo "power cuts: strace, mkfs.ext4 and mkfs.xfs are here"
elif [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "power cuts: missing$need; those tests will be skipped"
elif { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $need; } \
    >/dev/null 2>&1; then
    echo "power cuts: installed$need"
else
    echo "power cuts: could not install$need; those tests will be skipped"
fi
exit 0
