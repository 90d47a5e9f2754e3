#!/bin/sh
# What trains here, which locks stand, what the logs say last. Read-only; needs nothing but sh, ps, find and tail.
#
# Usage: check_training_status.sh [ROOT ...]      default: results and kssm/results under the project's root
# Exit:  0 nothing needs attention, 4 a stale lock stands, 2 a ROOT is no directory.
#
# Written for /bin/sh on macOS and Linux alike: names go from find to sh as arguments, never as lines, so that spaces,
# quotes and newlines in them do no harm; `ls -l` tells times, because `stat` has different flags on each.

set -u
LC_ALL=C # a log that is not UTF-8 must not stop tr and sed
export LC_ALL
# What a terminal would obey is shown as "?", also the control characters that UTF-8 spells with two bytes.
second=$(printf '\302[\200-\237]')
export second
root=$(cd "$(dirname "$0")/.." && pwd) || exit 2
if [ $# -eq 0 ]; then
    set --
    for place in "$root/results" "$root/kssm/results"; do
        [ -d "$place" ] && set -- "$@" "$place"
    done
fi
for place in "$@"; do
    [ -d "$place" ] || { printf 'no such directory: %s\n' "$place" >&2; exit 2; }
done

echo "[1] Running training processes"
# -ww: a command line longer than the terminal must not be cut before it is searched.
running=$(ps -A -ww -o pid= -o user= -o etime= -o args= | grep -E '[t]rain_kssm|[k]ssm train|[-]m kssm ')
if [ -n "$running" ]; then printf '%s\n' "$running" | tr '\000-\010\013-\037\177' '[?*]' | sed "s/$second/?/g; s/^/  /"; else echo "  none"; fi
echo

echo "[2] Lock files"
if [ $# -eq 0 ]; then locks=""; else
    locks=$(find "$@" -name training.lock -exec sh -c '
        for lock do
            # A FIFO in its place would be read for ever.
            if [ -f "$lock" ]; then pid=$(head -c 32 "$lock" 2>/dev/null | tr -d "\n"); else pid=""; fi
            printf "  %s\n" "$(printf %s "$lock" | tr "\000-\037\177" "[?*]" | sed "s/$second/?/g")"
            case $pid in
                "" | *[!0-9]*) echo "    names no process (stale)" ;;
                *)  # A zombie is dead, whatever `kill -0` says of it.
                    state=$(ps -o stat= -p "$pid" 2>/dev/null | tr -d " ")
                    case $state in
                        "" | Z*) echo "    PID $pid is DEAD (stale)" ;;
                        *) echo "    PID $pid is ALIVE" ;;
                    esac ;;
            esac
        done' sh {} +)
fi
if [ -n "$locks" ]; then printf '%s\n' "$locks"; else echo "  none"; fi
echo

echo "[3] Recent log activity"
if [ $# -eq 0 ]; then logs=""; else
    logs=$(find "$@" -name training.log -type f -exec sh -c '
        for log do
            printf "  %s\n" "$(printf %s "$log" | tr "\000-\037\177" "[?*]" | sed "s/$second/?/g")"
            # Month, day, time or year: fields 6 to 8 of ls on both systems, whatever the name holds after them.
            printf "    last written %s\n" "$(ls -ldn "$log" | head -n 1 | awk "{print \$6, \$7, \$8}")"
            # From the end, and no more than a screen of it: a log may be one line of gigabytes.
            tail -c 65536 "$log" | tail -n 3 | tr "\000-\010\013-\037\177" "[?*]" | cut -c 1-500 |
                sed "s/$second/?/g; s/^/    | /"
        done' sh {} +)
fi
if [ -n "$logs" ]; then printf '%s\n' "$logs"; else echo "  none"; fi

case $locks in
    *"(stale)"*)
        echo
        echo "A stale lock needs no hand: the next start clears it, and so does \`solorun check\`."
        exit 4 ;;
esac
exit 0
