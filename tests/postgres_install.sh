#!/bin/sh
# What the tests with PostgreSQL need beside Python: its server programs. As root on a Debian-like
# system they are installed if they are missing; elsewhere nothing happens, and the tests are skipped
# with a count and a reason. No server is set up or started here: the tests run their own.
set -u
if command -v initdb >/dev/null 2>&1 || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1; then
    echo "postgres: its programs are here"
elif [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "postgres: initdb is missing; those tests will be skipped"
elif {
    apt-get update -qq &&
        mkdir -p /etc/postgresql-common &&
        echo "create_main_cluster = false" >/etc/postgresql-common/createcluster.conf &&
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq postgresql
} >/dev/null 2>&1; then
    echo "postgres: installed"
else
    echo "postgres: could not be installed; those tests will be skipped"
fi
exit 0
