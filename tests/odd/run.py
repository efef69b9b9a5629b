#!/usr/bin/env python3
"""Imports odd archives and images, and compares every entry with what GNU tar, or skopeo and umoci, make of them.

usage: run.py --spark PATH [--seed N] [--rounds N] [--only TEXT]

What they take and Sparks refuses is a fault, unless the error has the words of a row in docs/images.md. No two cases have a
layer in common, so that none finds in the pool what another left. SPARKS_TEST_ROUNDS and SPARKS_TEST_SEED are the defaults;
`--only` runs the cases whose kinds contain the text.
"""

import argparse
import concurrent.futures
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time

sys.dont_write_bytecode = True

import archives  # noqa: E402
import compare  # noqa: E402
import images  # noqa: E402
import packing  # noqa: E402
import saved  # noqa: E402, F401 (it adds its kinds)
from tape import Tape  # noqa: E402

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# Most rows of what is refused.
ROWS = 20

# What `spark` has to say of a kind, besides what it makes of it.
SAYS = {
    "capability-of-another-root": "extended attributes were dropped",
    "devices": "device nodes or sockets were left out",
    "large-ids": "belong to 65534 now",
}

# Kinds of images that go together: one of the first with one of the second.
# What umoci reads otherwise in a layer, or not at all; GNU tar does in an archive.
NOT_UMOCI = {"unknown-type", "volume-label", "sparse-of-gnu", "global-comment", "global-values", "file-with-a-slash",
             "long-names-of-both", "empty-attribute"}
CONTENT = ["whiteouts", "other-types-above", "hard-links-between-layers", "devices-in-a-layer", "layer-of-no-bytes",
           "layer-of-zeros", "layer-without-an-end", "layer-twice", "null-in-documents", "odd-history", "absent-members",
           "unknown-members", "null-for-a-platform"]
AROUND = ["uncompressed", "of-zstd", "of-zstd-with-a-skippable-frame", "odd-gzip", "index-in-an-index",
          "index-without-platforms", "one-entry-without-a-name", "archive-of-a-layout", "compressed-archive-of-a-layout",
          "of-docker-save", "of-docker-save-with-compressed-layers", "of-docker-save-compressed",
          "of-docker-save-from-a-pipe", "of-docker-save-with-links", "layout-from-a-pipe", "odd-archive-of-docker-save"]


def refusals():
    """The words of each documented row."""
    text = open(f"{TOP}/docs/images.md", encoding="utf-8").read()
    table = text.split("| refused | error |\n|---|---|\n", 1)[1].split("\n\n", 1)[0]
    rows = [re.search(r"\| `([^`]+)` \|$", row).group(1) for row in table.splitlines()]
    assert 0 < len(rows) <= ROWS, f"{len(rows)} rows are documented, and {ROWS} are the most"
    return rows


class Machine:
    """A pool of its own, and nothing of it afterwards."""

    def __init__(self, spark):
        self.spark = os.path.abspath(spark)
        self.dir = tempfile.mkdtemp(prefix="sparks-odd-", dir="/var/tmp")
        self.run = tempfile.mkdtemp(prefix="sparks-odd-", dir="/run")
        os.chmod(self.run, 0o711)
        os.mkdir(f"{self.dir}/root", 0o700)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SPARK", "XDG_"))}
        self.env = {**kept, "HOME": self.dir, "SPARK_ROOT": f"{self.dir}/root", "SPARK_RUN": self.run, "NO_COLOR": "1"}

    def __enter__(self):
        try:
            self("pool", "init", "--size", "2G")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __call__(self, *command, check=True, **options):
        options.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.run([self.spark, *command], env=self.env, cwd=self.dir, check=check, text=True, timeout=600,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)

    def root_of(self, base):
        return f"{self.dir}/root/pool/bases/{base}/root"

    def __exit__(self, *_):
        subprocess.run(["umount", f"{self.dir}/root/pool"], stderr=subprocess.DEVNULL, check=False)
        shutil.rmtree(self.dir)
        shutil.rmtree(self.run)


class Case:
    """One archive or image."""

    def __init__(self, number, seed, kinds):
        self.number, self.kinds = number, kinds
        self.random = random.Random(f"{seed} {number} {kinds}")
        self.name = f"case {number}: {' + '.join(kinds)}"

    def import_archive(self, machine, place):
        tape = Tape().add(b"mark", f"{self.name}".encode())
        pack, ending, options = None, None, []
        for i, kind in enumerate(self.kinds):
            if kind in archives.KINDS:
                archives.fill(tape, kind, b"k%d/" % i, self.random)
            elif kind in archives.ENDS:
                ending = archives.ENDS[kind]
            elif kind == "nothing":
                tape.data, ending = b"", lambda *_: b""
            else:
                pack, options = packing.PACKINGS[kind], ["--zstd"] if kind.startswith("zstd") else []
        if ending:
            tape.ending = ending(tape, self.random)
        with open(f"{place}/archive", "wb") as file:
            file.write(pack(tape.end()) if pack else tape.end())
        os.mkdir(f"{place}/theirs", 0o755)
        command = ["tar", "-xp", "-f", f"{place}/archive", "-C", f"{place}/theirs", "--numeric-owner", "--xattrs",
                   "--xattrs-include=*", "--delay-directory-restore", *options]
        theirs = self.run(command)
        with open(f"{place}/archive", "rb") as file:
            source = self.random.choice(["-", f"{place}/archive"])
            ours = machine("base", "import", source, f"c{self.number}", check=False, stdin=file)
        return theirs, f"{place}/theirs", ours

    def import_image(self, machine, place):
        mark = f"{self.name} {self.random.random()}"
        image = images.Image(mark, self.random)
        for i, kind in enumerate(self.kinds):
            if kind in images.KINDS:
                images.KINDS[kind](image, self.random)
            else:
                archives.fill(self.random.choice(image.layers).tape, kind, b"k%d/" % i, self.random)
        source = image.write(place)
        theirs = self.run(["skopeo", "copy", "-q", source, f"oci:{place}/layout:v"])
        if image.tamed:
            # umoci does not know this, and gets the same image without it.
            image.tamed()
            os.mkdir(f"{place}/tame")
            theirs = self.run(["skopeo", "copy", "-q", image.write(f"{place}/tame"), f"oci:{place}/layout:v"])
            assert not theirs.returncode, theirs.stderr
        if not theirs.returncode:
            theirs = self.run(["umoci", "raw", "unpack", "--image", f"{place}/layout:v", f"{place}/theirs"])
        ours = self.pull(machine, source, image.transport, place)
        if hasattr(image, "wrong") and f"config.{image.wrong[0]}" not in ours.stderr:
            raise AssertionError(f"the error does not name config.{image.wrong[0]}: {ours.stderr}")
        return theirs, f"{place}/theirs", ours

    def pull(self, machine, source, transport, place):
        command = ["base", "pull", source, f"c{self.number}"]
        if transport == "file":
            return machine(*command, check=False)
        form, file = source.split(":")[:2]
        if transport == "fifo":
            os.mkfifo(f"{place}/fifo")
            command[2] = f"{form}:{place}/fifo"
            writer = subprocess.Popen(["cp", file, f"{place}/fifo"])
        else:
            command[2] = f"{form}:{transport}"
            writer = subprocess.Popen(["cat", file], stdout=subprocess.PIPE)
        try:
            return machine(*command, check=False, stdin=writer.stdout or subprocess.DEVNULL)
        finally:
            if writer.stdout:
                writer.stdout.close()
            writer.kill()
            writer.wait()

    @staticmethod
    def run(command):
        return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                              errors="replace", timeout=600, check=False)

    def check(self, machine, rows):
        """What is wrong, the documented row that it met, and whether they took it."""
        since = time.time() - 1
        is_image = all(kind in images.KINDS for kind in self.kinds[:1])
        with tempfile.TemporaryDirectory(dir=machine.dir) as place:
            work = self.import_image if is_image else self.import_archive
            try:
                theirs, tree, ours = work(machine, place)
            except AssertionError as e:
                return [str(e)], None, True
            if "panicked" in ours.stderr or ours.returncode not in (0, 1):
                return [f"status {ours.returncode}: {ours.stderr}"], None, True
            if ours.returncode:
                row = next((row for row in rows if row in ours.stderr), None)
                wrong = [] if theirs.returncode or row else [f"they take it: {ours.stderr.strip()}"]
                return wrong, row, not theirs.returncode
            if theirs.returncode:
                return [], None, False
            missing = [text for kind, text in SAYS.items() if kind in self.kinds and text not in ours.stderr]
            seen = compare.describe(tree, since), compare.describe(machine.root_of(f"c{self.number}"), since)
            if is_image:
                # umoci gives the root a time of its own.
                for root in seen:
                    del root[b""]["time"]
            return [f"it does not say `{text}`: {ours.stderr}" for text in missing] + compare.differences(*seen), None, True


def cases(seed, rounds):
    """The kinds of each case: each alone, and then pairs."""
    chosen = random.Random(seed)
    tapes, packs, ends = list(archives.KINDS), list(packing.PACKINGS), list(archives.ENDS)
    in_layers = [kind for kind in tapes if kind not in NOT_UMOCI]
    for _ in range(rounds):
        for _ in range(2):
            yield from ([kind] for kind in [*tapes, *images.KINDS])
        yield from ([chosen.choice(tapes), kind] for kind in [*packs, *ends])
        yield ["nothing"]
        yield from (chosen.sample(tapes, 2) for _ in range(50))
        yield from ([chosen.choice(tapes), chosen.choice(packs)] for _ in range(15))
        yield from ([chosen.choice(CONTENT), chosen.choice(AROUND)] for _ in range(25))
        yield from ([chosen.choice([*CONTENT, *AROUND]), chosen.choice(in_layers)] for _ in range(35))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--spark", required=True)
    parser.add_argument("--seed", type=int, default=int(os.environ.get("SPARKS_TEST_SEED") or 1))
    parser.add_argument("--rounds", type=int, default=int(os.environ.get("SPARKS_TEST_ROUNDS") or 1))
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    rows = refusals()
    all_cases = [Case(n, args.seed, kinds) for n, kinds in enumerate(cases(args.seed, args.rounds))]
    chosen = [case for case in all_cases if args.only in case.name]
    good = bad = refused = 0
    met, lock = set(), threading.Lock()
    with Machine(args.spark) as machine, concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:

        def run(case):
            nonlocal good, bad, refused
            wrong, row, taken = case.check(machine, rows)
            with lock:
                met.add(row)
                good, bad, refused = good + (not wrong), bad + bool(wrong), refused + (not taken)
                for line in wrong[:8]:
                    print(f"{case.name}: {line}", flush=True)

        for done in [pool.submit(run, case) for case in chosen]:
            done.result()
    if not args.only:
        stale = [row for row in rows if row not in met]
        for row in stale:
            print(f"docs/images.md says that this is refused, and nothing was: {row}")
        bad += len(stale)
    kinds = {kind for case in chosen for kind in case.kinds}
    pairs = sum(len(case.kinds) > 1 for case in chosen)
    print(f"seed {args.seed}: {len(chosen)} cases of {len(kinds)} kinds, {pairs} of two kinds; the others refused {refused}")
    print(f"{good} passed, {bad} failed")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
