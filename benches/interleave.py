"""Times commands in turn, round after round, so that a noisy machine is as noisy for each of them. The turn of each round
is another one: the kernel still frees what the command before left.

usage: interleave.py ROUNDS < lines of NAME<TAB>COMMAND[<TAB>UNTIMED COMMAND AFTERWARDS]

The first line is the one that the others are compared with. Prints a Markdown table: median, least and 95th
percentile in milliseconds, and the median of the ratios to the first line, round by round. No shell is started.
"""
import os
import random
import shlex
import statistics
import subprocess
import sys
import time


def run(argv):
    null = os.open(os.devnull, os.O_RDWR)
    actions = [(os.POSIX_SPAWN_DUP2, null, fd) for fd in (0, 1)]
    start = time.perf_counter_ns()
    pid = os.posix_spawnp(argv[0], argv, os.environ, file_actions=actions)
    _, status = os.waitpid(pid, 0)
    took = (time.perf_counter_ns() - start) / 1e6
    os.close(null)
    if status != 0:
        sys.exit(f"failed with status {status}: {shlex.join(argv)}")
    return took


def main():
    rounds = int(sys.argv[1])
    rows = []
    for line in sys.stdin:
        name, command, *after = line.rstrip("\n").split("\t")
        rows.append((name, shlex.split(command), shlex.split(after[0]) if after else None, []))
    for number in range(rounds + 2):
        for _, command, after, times in random.sample(rows, len(rows)):
            took = run(command)
            if number >= 2:
                times.append(took)
            if after:
                subprocess.run(after, check=True, stdout=subprocess.DEVNULL)
    print("| | median ms | least | 95 % | ratio |\n|---|---|---|---|---|")
    first = rows[0][3]
    for name, _, _, times in rows:
        ratio = statistics.median(t / f for t, f in zip(times, first))
        worst = sorted(times)[int(len(times) * 0.95)]
        print(f"| {name} | {statistics.median(times):.1f} | {min(times):.1f} | {worst:.1f} | {ratio:.2f} |")


main()
