#!/bin/bash
# Part of guest.sh: a value of a secret is in no journal and in no core dump. Has a
# pool of its own. Prints what it does; the last line says what was wrong.
set -euo pipefail

# shellcheck source=checks.sh
. /share/checks.sh

export SPARK_ROOT=/var/lib/spark-secrets SPARK_RUN=/run/spark-secrets SPARK_SECRET_TIMEOUT=5m
kept=/root/secrets
random() { head -c 12 /dev/urandom | od -An -tx1 | tr -d ' \n'; }
value=CANARY-$(random)
control=CONTROL-$(random)

wrong() {
    echo "$*"
    exit 1
}

mkdir -p "$kept"
printf %s "$value" >"$kept/value"
printf 'CANARY=%s\n' "$value" >"$kept/environment"
printf %s "$control" >"$kept/control"
mkdir -p /etc/spark
cat >/etc/spark/config.toml <<END
[secret-commands]
value = ["cat", "$kept/value"]
wait = ["sleep", "1000"]
END
# As sudo has it for somebody: a user of the host, who has a home.
echo 'dev:x:1000:1000::/home/dev:/bin/sh' >>/etc/passwd
install -d -o 1000 -g 1000 /home/dev

### The journal

# A command as a service of its own: what it says goes to the journal.
served() { # STATUS SPARK_ARG...
    local wanted=$1 status=0
    shift
    systemd-run --quiet --wait --collect --setenv=SPARK_ROOT --setenv=SPARK_RUN --setenv=HOME=/root \
        --property=EnvironmentFile="$kept/environment" --property=StandardInput="file:$kept/value" \
        /usr/local/bin/spark -vv "$@" || status=$?
    echo "status $status: spark -vv $*"
    [ "$status" = "$wanted" ] || wrong "it ended with $status"
}

spark pool init --size 1G
spark base bootstrap minimal
served 0 secrets set STORED
served 0 secrets set CMD cmd://value
served 0 create web --network none --secret "FILE=file://$kept/value" --secret VARIABLE:env=env://CANARY
served 0 secrets check --spark web
served 0 secrets list --spark web --json
served 0 secrets refresh web
# shellcheck disable=SC2016  # the variables are inside
served 0 exec web -- sh -c 'test "$STORED" = "$VARIABLE" && test "$CMD" = "$FILE" && test -n "$FILE"'
served 0 exec --secret X=env://CANARY web -- true
served 0 exec -d web -- true
served 0 logs web
served 0 info web --json
served 0 snapshot create web s
served 0 fork web copy
served 125 exec --secret X=cmd://nope web -- true
served 0 stop web copy
systemd-run --quiet --wait --collect cat "$kept/control"

journalctl --sync
journalctl -o export >"$kept/journal"
grep -qa 'resolving secrets' "$kept/journal" || wrong 'what spark logs is not in the journal'
grep -qa "$control" "$kept/journal" || wrong 'what services say is not found in the journal'
hex=$(od -An -v -tx1 "$kept/value" | tr -d ' \n')
for form in "$value" "$(base64 -w0 "$kept/value" | cut -c -40)" "$hex" "${hex^^}"; do
    ! grep -qaF "$form" "$kept/journal" || wrong 'the value is in the journal'
done

### Core dumps, as a host collects them that has systemd-coredump

sysctl -q fs.suid_dumpable=2 "kernel.core_pattern=$kept/core.%p"
ulimit -c unlimited
cores() { find "$kept" -name "core.$1" | grep -q .; }
sleeps() { pgrep -x -P "$1" sleep; }

sleep 1000 &
kill -ABRT $!
wait $! || true
cores $! || wrong 'the kernel writes no core dumps here'

# Behind sudo: the identity file is read with the caller's rights, which makes a process dumpable again.
sudo_spark() { SUDO_UID=1000 SUDO_GID=1000 exec /usr/local/bin/spark "$@"; }
(sudo_spark secrets set -P held STORED <"$kept/value")
(sudo_spark secrets set -P held FILE "file://$kept/value")
(sudo_spark secrets check -P held)
(sudo_spark secrets set -P held WAIT cmd://wait)
for user in dev root; do
    if [ "$user" = dev ]; then
        sudo_spark secrets check -P held &
    else
        spark secrets check -P held-too &
    fi
    pid=$!
    soon sleeps "$pid"
    kill -ABRT "$pid"
    status=0
    wait "$pid" || status=$?
    [ "$status" = 134 ] || wrong "it did not crash: $status"
    ! cores "$pid" || wrong "there is a core dump of a process that holds values, for $user"
    # What root asks for, for the second round.
    [ "$user" = root ] || {
        spark secrets set -P held-too FILE "file://$kept/value"
        spark secrets set -P held-too WAIT cmd://wait
    }
done
# Its program is ended with it.
soon sh -c '! pgrep -x sleep'

### Core dumps that the kernel gives to a program of the host

# shellcheck disable=SC2016  # for the program
printf '#!/bin/sh\ncat >"%s/piped.$1"\n' "$kept" >"$kept/collect"
chmod 700 "$kept/collect"
sysctl -q "kernel.core_pattern=|$kept/collect %p"
piped() { find "$kept" -name "piped.$1" | grep -q .; }
sleep 1000 &
kill -ABRT $!
wait $! || true
soon piped $! || wrong 'the kernel gives no core dump to a program'
rm "$kept"/piped.*
CANARY=$value spark resume web
status=0
# shellcheck disable=SC2016  # the shell inside expands it
spark exec web -- sh -c 'kill -ABRT $$' || status=$?
[ "$status" = 134 ] || wrong "it did not crash inside: $status"
# What asked for a dump by itself is the last to be given one, so one of the command above would be there by now.
# shellcheck disable=SC2016
spark exec web -- sh -c 'ulimit -c unlimited; kill -ABRT $$' || true
soon piped '*'
[ "$(find "$kept" -name 'piped.*' | wc -l)" = 1 ] || wrong 'a program of the host got the memory of a crash inside'

spark delete --now -f web copy
rm -r "$kept" /etc/spark
echo 'no journal and no core dump has it'
