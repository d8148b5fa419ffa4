# In a fresh system with systemd: sh /mnt/run make | check, behind a line that sets SUMS. Facts for the host are lines that start with SMC-.
#
# make: a PostgreSQL under pgbench on the root disk, of which smcd makes images meanwhile. check: what the root disk has, which
# was restored from an image.
PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
DATA=/var/lib/database

fail() {
    say "FAILED $*"
    cat /tmp/output /tmp/server.log >&3 2>/dev/null
    end
}

# Whom a server of PostgreSQL serves, and who it is: it refuses to be root.
as_user() { $AS_USER "$@"; }
# Without a function, it is the program itself that runs in the background.
AS_USER='setpriv --reuid=1900 --regid=1900 --clear-groups --'

ask() { as_user psql -X -A -t -h /run/database -U postgres -d postgres -c "$1"; }

find_programs() {
    for directory in /usr/lib/postgresql/*/bin; do PATH=$directory:$PATH; done
    cd /
    mkdir -p /run/database
    chown 1900:1900 /run/database
}

start_server() {
    $AS_USER postgres -D $DATA -k /run/database >/tmp/server.log 2>&1 &
    SERVER=$!
    wait_for ask 'SELECT 1'
}

stop_server() {
    do_or_fail as_user pg_ctl stop -m fast -w -D $DATA
    wait $SERVER
}

has_written() { [ "$(ask 'SELECT count(*) FROM pgbench_history')" -gt "$1" ]; }

make() {
    do_or_fail tar -C / --skip-old-files -xf /mnt/postgres.tar
    do_or_fail ldconfig
    cp /mnt/smcd /usr/local/bin
    echo 'postgres:x:1900:1900::/:/bin/sh' >>/etc/passwd
    echo 'postgres:x:1900:' >>/etc/group
    find_programs
    mkdir -p $DATA /srv/images
    chown 1900:1900 $DATA
    do_or_fail mount -t ext4 "$(disk store)" /srv/images
    do_or_fail as_user initdb --data-checksums --locale=C --auth=trust -U postgres -D $DATA
    printf "listen_addresses = ''\nshared_buffers = 32MB\nmax_wal_size = 64MB\ncheckpoint_timeout = 30s\njit = off\n" >>$DATA/postgresql.conf
    start_server
    do_or_fail ask 'CREATE EXTENSION amcheck'
    do_or_fail as_user pgbench -i -q -s 1 -h /run/database -U postgres postgres
    $AS_USER pgbench -n -c 2 -R 50 -T 1000000 -h /run/database -U postgres postgres >/dev/null 2>&1 &
    load=$!
    for _ in 1 2 3 4 5; do
        wait_for has_written "$(ask 'SELECT count(*) FROM pgbench_history')"
        report=$(smcd sync --json --track --freeze=10s --store /srv/images --job server --max-images 3 --disk "root=$(disk root)" 2>/tmp/output) ||
            fail "a sync"
        say "SYNC $report"
    done
    kill $load
    wait $load
    stop_server
    do_or_fail umount /srv/images
}

check() {
    find_programs
    start_server
    grep -E 'recovery|redo|crash|interrupted' /tmp/server.log >&3
    do_or_fail as_user pg_amcheck --heapallindexed --rootdescend -h /run/database -U postgres -d postgres
    say "SUMS $(ask "$SUMS")"
    say "TRANSACTIONS $(ask 'SELECT count(*) FROM pgbench_history')"
    stop_server
    do_or_fail as_user pg_checksums --check -D $DATA
}

say "KERNEL $(uname -r)"
"$1"
say DONE
end
