# What the guest does in each of its boots: sh /mnt/run PHASE. Facts for the host are lines that start with SMC-.
export LC_ALL=C SMC_STORE=/var/lib/smc/store
# What is said from within $( ) goes to the host too.
exec 3>&1
SOURCE=/dev/disk/by-id/virtio-source
BIG=/dev/disk/by-id/virtio-big
STORE=/srv/images

say() { printf 'SMC-%s\n' "$*"; }

# Ends the boot: whatever was to come would only hide what went wrong.
fail() {
    {
        say "FAILED $*"
        journalctl --no-pager -o cat -u smcd -n 40
        systemctl --no-pager status smcd.service smcd.socket
        systemctl poweroff
        sleep 600
    } >&3
}

do_or_fail() { "$@" >/tmp/output 2>&1 || { cat /tmp/output >&3; fail "$*"; }; }

job() { smcctl --json job show "$1" || fail "show $1"; }

# compared JOB: bytes that its running sync has compared; 0 while it has not begun.
compared() { job "$1" | grep -o '"progress":{[^}]*' | grep -o '"compared_bytes":[0-9]*' | cut -d : -f 2 | grep . || echo 0; }

# Until the sync that runs has compared so many bytes. It must not end before.
wait_compared() {
    until [ "$(compared "$1")" -ge "$2" ]; do
        job "$1" | grep -q '"status":"Running"' || fail "$1 does not run: $(job "$1")"
        sleep 0.3
    done
}

# What is the same in every boot.
system_state() {
    say "SYSTEM $(systemctl is-system-running --wait)"
    say "UNITS-FAILED $(systemctl --failed --no-legend --plain | tr '\n' ';')"
}

service_state() {
    say "ACTIVE $(systemctl is-active smcd.service) $(systemctl is-active smcd.socket)"
    say "SOCKET $(stat -c '%a %U:%G %F' /run/smc/smcd.sock)"
    say "DIRECTORIES $(stat -c %a /run/smc) $(stat -c %a /var/lib/smc) $(stat -c %a /etc/smc)"
}

unit_state() {
    systemctl show smcd -p LimitNOFILE -p LimitMEMLOCK -p WatchdogUSec -p Restart -p NRestarts | sed 's/^/SMC-SHOW-/; s/=/ /'
    say "ENABLED $(systemctl is-enabled smcd.service smcd.socket | tr '\n' ' ')"
    say "SECURITY $(systemd-analyze --no-pager security smcd.service | tail -n 1)"
    # There is no man here that could look for pages.
    say "VERIFY $(systemd-analyze verify --man=no smcd.service smcd.socket 2>&1 | tr '\n' ';')"
}

# A job's own hook: what the sandbox lets it do, and what not.
write_hook() {
    # PAM warns where a minimal installation has none.
    touch /etc/default/locale
    cat >/root/hook <<'HOOK'
#!/bin/sh
exec >>/root/hook.log 2>/root/hook.errors
echo "stage $1 $SMC_JOB"
echo "user $(su nobody -s /bin/sh -c 'id -un') $(runuser -u nobody -- id -un)"
dd if=/dev/disk/by-id/virtio-source of=/dev/null bs=4096 count=1 2>/dev/null && echo "device read"
dd if=/dev/zero of=/dev/disk/by-id/virtio-source bs=4096 count=1 conv=notrunc 2>/dev/null && echo "device written"
touch /usr/smc-was-here && echo "usr written"
touch /etc/smc/was-here && echo "etc written"
touch /srv/anywhere && echo "srv written"
unshare --mount true && echo "namespace made"
systemd-run --pipe --wait --quiet --collect sh -c 'touch /etc/outside && exit 7'
echo "outside $?"
fsfreeze --freeze /srv/images && fsfreeze --unfreeze /srv/images && echo "frozen and thawed"
exit 0
HOOK
    chmod 755 /root/hook
}

# Whoever calls while smcd does not run has it started, and an answer.
try_activation() {
    do_or_fail systemctl stop smcd.service
    say "STOPPED $(systemctl is-active smcd.service) $(systemctl is-active smcd.socket)"
    do_or_fail smcctl status
    say "STARTED $(systemctl is-active smcd.service)"
}

# The findings with the sandbox and without: what is hidden from smcd it would miss.
precheck_twice() {
    say "PRECHECK $(smcctl --json precheck --disk vdc)"
    printf 'state_dir = "/root/free"\nsocket = "/root/free.sock"\n' >/root/free.toml
    smcd --config /root/free.toml 2>/root/free.log &
    until smcctl --socket /root/free.sock status >/dev/null 2>&1; do
        kill -0 $! || fail "smcd without a sandbox: $(cat /root/free.log)"
        sleep 0.1
    done
    say "PRECHECK-FREE $(smcctl --socket /root/free.sock --json precheck --disk vdc)"
    kill $!
    wait $!
}

watchdog() { systemctl show -P WatchdogTimestampMonotonic smcd; }

# Until smcd has told systemd that it lives.
wait_watchdog() {
    until [ "$(watchdog)" != "$1" ]; do sleep 0.5; done
    say "WATCHDOG fed"
}

mount_store() {
    mkdir -p $STORE
    echo 'LABEL=store /srv/images ext4 defaults 0 2' >>/etc/fstab
    systemctl daemon-reload
    do_or_fail mount $STORE
}

# A target on the same machine, and a sync to it that its sandbox must let through.
try_target() {
    do_or_fail dpkg -i /mnt/smc-store_1.0_amd64.deb
    line=$(smc-store enrol web01 --address 127.0.0.1 2>/dev/null) || fail "enrol"
    do_or_fail smcd target add backup "$line"
    do_or_fail smcd sync --target backup --job web --disk vda=$SOURCE
    say "TARGET $(smc-store ls --json)"
    say "TARGET-DIGEST $(runuser -u smc-store -- smc-image --store /srv/smc/web01 --json digest web/latest)"
    say "TARGET-STATE $(systemctl is-active smc-store) $(stat -c '%a %U' /var/lib/smc-store /srv/smc | tr '\n' ' ')"
    say "TARGET-SECURITY $(systemd-analyze --no-pager security smc-store.service | tail -n 1)"
    say "TARGET-VERIFY $(systemd-analyze verify --man=no smc-store.service 2>&1 | tr '\n' ';')"
    do_or_fail dpkg --purge smc-store
    say "TARGET-LEFT $(ls -d /var/lib/smc-store /etc/smc/smc-store.toml /srv/smc 2>/dev/null | tr '\n' ' ')"
}

install_phase() {
    system_state
    do_or_fail dpkg -i /mnt/smc_1.0_amd64.deb
    service_state
    unit_state
    say "CHECK $(smcd --check-config)"
    try_activation
    fed=$(watchdog)
    write_hook
    mount_store
    # smcd runs already: it must see a filesystem that was mounted after it had started.
    do_or_fail smcctl job create web01 --disk vda=$SOURCE --interval 1h --max-images 3 --pre-hook /root/hook --start
    do_or_fail smcctl job watch web01 --until-idle
    say "WEB01 $(job web01)"
    sed 's/^/SMC-HOOK-/' /root/hook.log
    sed 's/^/the hook complains: /' /root/hook.errors
    precheck_twice
    try_target
    do_or_fail smcctl job create db01 --disk vdb=$BIG --store $STORE --interval 6h --max-images 2 \
        --bandwidth-limit 8MiB --start
    wait_compared db01 50331648
    wait_watchdog "$fed"
    say "DB01 $(job db01)"
    systemctl reboot
}

# smcd goes on by itself; then the power goes.
cut_phase() {
    system_state
    service_state
    wait_compared db01 50331648
    say "WEB01 $(job web01)"
    say "DB01 $(job db01)"
    say "CUT"
    sleep 600
}

upgrade() {
    say "PID-BEFORE $(systemctl show -P MainPID smcd)"
    do_or_fail dpkg -i /mnt/smc_1.1_amd64.deb
    say "VERSION $(dpkg-query -W -f '${Version}' smc)"
    say "PID-AFTER $(systemctl show -P MainPID smcd)"
    service_state
}

purge() {
    # Images are looked at without the package that made them.
    cp /usr/bin/smc-image /root/
    dpkg --purge smc >/tmp/output 2>&1 || { cat /tmp/output >&3; fail "purge"; }
    sed -n 's/^smc: /SMC-PURGE /p' /tmp/output
    say "LEFT $(find /etc /run /usr /var/lib -xdev \( -name 'smcd*' -o -path '/etc/smc*' -o -path '/run/smc' -o -path '/var/lib/smc/*' \) \
        -not -path '/run/systemd/*' -not -path '/var/lib/smc/store/*' | sort | tr '\n' ' ')"
    say "UNIT-FILES $(systemctl list-unit-files --no-legend 'smcd*' | tr '\n' ';')"
    /root/smc-image verify && say "VERIFIED-PURGED all"
}

# What was kept counts again.
reinstall() {
    do_or_fail dpkg -i /mnt/smc_1.1_amd64.deb
    say "WEB01-REINSTALLED $(job web01)"
}

# smcd has the images of a job read, in a unit of its own.
check_images() {
    do_or_fail smcctl job modify web01 --verify-every 1d
    until job web01 | grep -q '"verified":{'; do sleep 0.5; done
    say "CHECKED $(job web01)"
    say "CHECK-UNITS $(journalctl --no-pager -q -o cat -t systemd | grep -o 'smc-check-[0-9]*.service' | sort -u | tr '\n' ' ')"
}

finish_phase() {
    system_state
    wait_compared db01 50331648
    say "WEB01 $(job web01)"
    say "DB01 $(job db01)"
    upgrade
    say "WEB01-UPGRADED $(job web01)"
    wait_compared db01 1048576
    say "DB01-UPGRADED $(job db01)"
    do_or_fail smcctl job modify db01 --bandwidth-limit 0
    do_or_fail smcctl job watch db01 --until-idle
    say "DB01-DONE $(job db01)"
    do_or_fail smcctl job sync web01 --wait
    say "WEB01-DONE $(job web01)"
    check_images
    say "WEB01-1 $(smc-image --json digest web01/1)"
    say "WEB01-2 $(smc-image --json digest web01/2)"
    say "DB01-LATEST $(smc-image --json --store $STORE digest db01/latest)"
    smc-image --store $STORE verify && smc-image verify && say "VERIFIED all"
    say "WARNINGS $(journalctl --no-pager -q -o cat -p warning -u smcd.service -u smcd.socket | tr '\n' ';')"
    say "UNITS-FAILED-LATER $(systemctl --failed --no-legend --plain | tr '\n' ';')"
    purge
    reinstall
    say "DONE all"
    systemctl poweroff
}

"$1_phase"
