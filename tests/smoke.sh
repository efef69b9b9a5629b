#!/bin/bash
# Ten minutes of looking: what to type, and what you should see. You judge.
#
#   tests/smoke.sh          step by step; Enter goes on
#   tests/smoke.sh --list   print the steps
#
# Type the commands as root in a second terminal, with `spark` in PATH and a
# Debian base made (examples/quickstart.sh does both for you, except PATH).
set -euo pipefail

number=0
list=
case ${1:-} in
--list) list=yes ;;
'') ;;
*)
    echo "usage: smoke.sh [--list]" >&2
    exit 2
    ;;
esac

indent() { printf '       %s\n' "${1//$'\n'/$'\n       '}"; }

step() { # TITLE TYPE SEE
    number=$((number + 1))
    printf '\n%d. %s\n   type:\n' "$number" "$1"
    indent "$2"
    printf '   you should see:\n'
    indent "$3"
    if [ -z "$list" ]; then
        read -r -p '   Enter goes on '
    fi
}

step 'The host' \
    'spark doctor' \
    'A line per check, each with ok or warn; a warn has a hint that you could type.
At once, in under a second.'

step 'Speed' \
    'time spark create smoke' \
    'The name, and a real time of a few hundredths of a second.'

step 'A spark made without thinking' \
    'spark exec - -- uname -a' \
    'A line of Linux. Afterwards spark list does not show it: it is gone.'

step 'A shell that feels like one' \
    'spark console smoke
ls --color=auto /; history; tty' \
    'A prompt with the name of the spark. Arrow keys, Tab, Ctrl-R and Ctrl-C work;
colours; tty prints /dev/pts/0.'

step 'Full-screen programs and the window' \
    'apt-get update && apt-get install -y vim htop
htop' \
    'Progress of apt in place. htop fills the window, follows when you resize it,
and shows the processes of the spark, not of the host. q leaves.'

step 'Only itself' \
    'id; ps aux; cat /proc/self/uid_map; mount -t tmpfs none /mnt' \
    'Root, a handful of processes, a uid_map that does not begin with 0 0, and
mount: permission denied.'

step 'Leaving' \
    'exit 3
echo $?' \
    '3. The terminal is as it was: what you type is echoed, Ctrl-C works.'

step 'Signals' \
    'spark exec smoke -- sleep 1000     (then Ctrl-C)
echo $?' \
    'It ends at once, with 130.'

step 'Pipes' \
    'seq 100000 | spark exec smoke -- sort -rn | head -n 1' \
    '100000, and no complaint of a broken pipe.'

step 'Stop and resume' \
    'spark exec smoke -- sh -c "date > /root/when"
spark stop smoke; spark list; spark resume smoke
spark exec smoke -- cat /root/when' \
    'State stopped in between; the date is still there.'

step 'Pause' \
    'spark exec -d smoke -- sh -c "while date; do sleep 1; done"
spark logs smoke
spark pause smoke; sleep 5; spark resume smoke; spark logs smoke' \
    'A date for each second, and none for those of the pause.'

step 'Limits' \
    'spark create small --memory 64M --pids 20
spark exec small -- sh -c "head -c 200M /dev/zero | tail"
echo $?
spark list' \
    'It is killed (137) after a moment; the host does not notice; small still runs.'

step 'A slip of the finger' \
    'spark delete smok
spark creat x
spark create smoke' \
    'Three errors in plain words, with what you meant (smoke, create), or what to do.'

step 'Second thoughts' \
    'spark delete smoke
spark delete -f smoke
spark undelete smoke && spark exec smoke -- cat /root/when' \
    'The first is refused, since it runs. The second says how to bring it back, and
until when. The date is there again.'

step 'Back to before' \
    'spark snapshot create smoke before
spark exec smoke -- rm -rf /usr /bin
spark exec smoke -- ls
spark snapshot restore smoke before && spark exec smoke -- ls
spark undo smoke; spark undo smoke; spark snapshot list smoke' \
    'An error, then the files again, all at once. The list has two snapshots, and what
each of them holds alone.'

step 'A race' \
    'spark fork -n 4 smoke try -- sh -c "sleep 2; hostname | grep -v 2"
spark tree
spark pick try-1 --as smoke; spark list' \
    'A bar while they are made and run, a table in which try-2 has status 1, a tree. After the
pick the four are gone from the list, and you are told how to take it back.'

step 'A reboot' \
    'reboot                             (if you may; else skip this)
spark list; spark resume smoke; spark exec smoke -- cat /root/when' \
    'smoke is stopped, then resumes, with its file.'

step 'Tidy' \
    'spark delete -f --now smoke small
spark list -a; mount | grep /run/spark; pgrep -a spark' \
    'No sparks of yours, no mount below /run/spark, no process.'

printf '\nThat is all. What looked wrong, slow or ugly is worth an issue.\n'
