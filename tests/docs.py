#!/usr/bin/env python3
"""Runs every command in the documents, and compares what it prints.

usage: docs.py --spark PATH [--update] [FILE...]

The documents are README.md and docs/*.md. In them

  ```console   is a session: each line `$ COMMAND` is run, in one shell for the
               whole file, in an empty directory and on a pool of its own; what
               follows has to be what it prints. Times, ids and process ids may
               differ, and a line `...` stands for any number of lines.
  ```sh        is to be typed. It is run in the same way, and has to succeed,
               except for lines in ELSEWHERE, which other tests run, and in
               REHEARSED, of which something harmless is run instead.

--update writes what the commands print into the documents instead.
"""

import argparse
import glob
import os
import re
import shutil
import subprocess
import sys
import tempfile

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# A line to be typed, and how it is known to be right where running it here would
# run all tests in a test, or change the machine.
ELSEWHERE = {
    "sudo examples/quickstart.sh": "tests/run.sh quickstart",
    "sudo tests/run.sh": "what runs this",
    "cargo build --release --locked": "tests/run.sh quickstart",
    "ctr run --rm --runtime io.containerd.spark.v1 IMAGE NAME COMMAND": "tests/run.sh containerd",
    "ctr run -d --snapshotter btrfs --runtime io.containerd.spark.v1 IMAGE web COMMAND": "tests/run.sh containerd",
    "spark base import containerd://default/web web": "tests/run.sh containerd",
    "spark --project default create --base web fork": "tests/run.sh containerd",
    "firewall-cmd --permanent --new-zone=sparks": "tests/vm/network.sh",
    "firewall-cmd --permanent --zone=sparks --add-interface=spk-+": "tests/vm/network.sh",
    "firewall-cmd --permanent --new-policy=sparks-out": "tests/vm/network.sh",
    "firewall-cmd --permanent --policy=sparks-out --add-ingress-zone=sparks": "tests/vm/network.sh",
    "firewall-cmd --permanent --policy=sparks-out --add-egress-zone=ANY": "tests/vm/network.sh",
    "firewall-cmd --permanent --policy=sparks-out --set-target=ACCEPT": "tests/vm/network.sh",
    "firewall-cmd --reload": "tests/vm/network.sh",
}

# What would change the machine, and what is tried in its place.
REHEARSED = {
    "(cd target/*/release && sudo install -m 755 spark spark-oci containerd-shim-spark-v1 /usr/local/bin/)":
        'mkdir there && (cd ../bin && install -m 755 spark spark-oci containerd-shim-spark-v1 ../work/there/) && '
        "there/spark version && there/spark-oci --version && there/containerd-shim-spark-v1 -v",
    "spark pool init --quota --size 50G":
        "SPARK_ROOT=$PWD/counting spark pool init --quota --size 1G && umount counting/pool",
}

# What differs from run to run, and what it is compared as.
VARIES = [
    (r"\b[0-9A-HJKMNP-TV-Z]{26}\b", "ID"),
    (r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d(:\d\d)?(\.\d+)?(Z|[+-]\d\d:\d\d)?", "TIME"),
    (r"\bpid: \d+", "pid: PID"),
    (r"[ \t]+$", ""),
]

BLOCK = re.compile(r"^```(console|sh)\n(.*?)^```$", re.M | re.S)


class Machine:
    """A pool of its own, a shell on it, and nothing of either afterwards."""

    def __init__(self, spark):
        self.spark = spark
        self.dir = tempfile.mkdtemp(prefix="sparks-docs-", dir="/var/tmp")
        self.run = tempfile.mkdtemp(prefix="sparks-docs-", dir="/run")
        os.chmod(self.run, 0o711)
        for name in ("bin", "root", "work"):
            os.mkdir(f"{self.dir}/{name}", 0o700)
        for program in ("spark", "spark-oci", "containerd-shim-spark-v1"):
            beside = os.path.join(os.path.dirname(os.path.abspath(spark)), program)
            os.symlink(beside, f"{self.dir}/bin/{program}")
        self.env = {
            "PATH": f"{self.dir}/bin:{os.environ['PATH']}",
            "HOME": f"{self.dir}/work",
            "LANG": "C.UTF-8",
            "TERM": "dumb",
            "SPARK_ROOT": f"{self.dir}/root",
            "SPARK_RUN": self.run,
        }
        self.shell = None

    def __enter__(self):
        try:
            self.once("spark pool init --size 2G")
        except BaseException:
            self.__exit__()
            raise
        self.shell = subprocess.Popen(
            ["bash"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, env=self.env, cwd=f"{self.dir}/work",
        )
        self.type('sudo() { "$@"; }')  # it runs as root, and there may be no sudo
        return self

    def __exit__(self, *_):
        if self.shell:
            self.shell.stdin.close()
            self.shell.wait(timeout=300)
        self.once("spark list -a -q | xargs -r spark stop -t 0; true")
        self.once(f"! mountpoint -q {self.dir}/root/pool || umount {self.dir}/root/pool")
        shutil.rmtree(self.dir)
        shutil.rmtree(self.run)

    def once(self, command):
        subprocess.run(
            command, shell=True, env=self.env, cwd=f"{self.dir}/work", check=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=600,
        )

    def type(self, command):
        """What a command prints, and its status. It keeps its shell's directory and variables."""
        mark = "-- the end of it --"
        self.shell.stdin.write(f"{{ {command}\n}} </dev/null; status=$?; echo; echo '{mark}' $status\n")
        self.shell.stdin.flush()
        lines = []
        for line in self.shell.stdout:
            if line.startswith(mark):
                # The newline before the mark is ours.
                if lines and lines[-1] == "":
                    lines.pop()
                return lines, int(line.rsplit(" ", 1)[1])
            lines.append(line.rstrip("\n"))
        raise RuntimeError(f"the shell ended in: {command}")


def commands(kind, text):
    """The commands of a block, each with the lines that are to follow."""
    found = []
    for line in text.splitlines():
        if kind == "sh":
            line = re.sub(r"(^|\s+)#.*", "", line)
            if line:
                found.append((line, []))
        elif line.startswith("$ "):
            found.append((line[2:], []))
        elif found and found[-1][0].endswith("\\"):
            found[-1] = (found[-1][0] + "\n" + line, [])
        elif found:
            found[-1][1].append(line)
        else:
            raise SystemExit(f"a console block begins with output: {line}")
    return found


def normal(line):
    for pattern, name in VARIES:
        line = re.sub(pattern, name, line)
    return line


def same(expected, printed):
    lines = (r"(?:.*\n)*" if line == "..." else re.escape(normal(line)) + r"\n" for line in expected)
    return re.fullmatch("".join(lines), "".join(normal(line) + "\n" for line in printed)) is not None


def check(path, machine, update):
    """Runs a document. Returns how many of its commands were right and how many not."""
    good = bad = 0
    text = open(path, encoding="utf-8").read()

    def run(block):
        nonlocal good, bad
        kind, out = block[1], []
        for command, expected in commands(kind, block[2]):
            where = f"{os.path.relpath(path, TOP)}: {command}"
            out.append(f"$ {command}")
            if kind == "sh" and command in ELSEWHERE:
                print(f"elsewhere - {where} ({ELSEWHERE[command]})")
                continue
            printed, status = machine.type(REHEARSED.get(command, command))
            right = status == 0 or any(line.startswith("error: ") for line in expected)
            if kind == "console":
                right = right and same(expected, printed)
                out += expected if right else printed
            good, bad = good + right, bad + (not right)
            print(f"{'ok' if right else 'not ok'} - {where}")
            if not right:
                print(f"# status {status}")
                for title, lines in (("expected", expected), ("printed", printed)):
                    print("".join(f"# {title}: {line}\n" for line in lines), end="")
        body = block[2] if kind == "sh" else "".join(line + "\n" for line in out)
        return f"```{kind}\n{body}```"

    new = BLOCK.sub(run, text)
    if update and new != text:
        open(path, "w", encoding="utf-8").write(new)
        print(f"{os.path.relpath(path, TOP)} is new")
    return good, bad


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--spark", required=True, help="the other programs are beside it")
    parser.add_argument("--update", action="store_true")
    parser.add_argument("files", nargs="*")
    args = parser.parse_args()
    # What is reported to others ends in a filesystem that cannot be mounted: tests/crash holds what it says.
    documents = [path for path in glob.glob(f"{TOP}/docs/**/*.md", recursive=True) if "/upstream/" not in path]
    files = args.files or [f"{TOP}/README.md", *sorted(documents)]
    good = bad = 0
    for path in files:
        if not BLOCK.search(open(path, encoding="utf-8").read()):
            continue
        with Machine(os.path.abspath(args.spark)) as machine:
            more = check(path, machine, args.update)
        good, bad = good + more[0], bad + more[1]
    print(f"{good} passed, {bad} failed")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
