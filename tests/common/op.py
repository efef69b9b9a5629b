#!/usr/bin/env python3
"""A stand-in for 1Password's `op`, which cannot be had here. It is not `op`: it does what 1Password's documentation and
docs/secrets.md say of `op read` and `op inject`, arguments, exit status and messages included, from a vault.json beside it,
and writes what it was called with to op.log. `mode` in vault.json makes it misbehave."""

import json, os, re, sys, time

HERE = os.path.dirname(os.path.abspath(__file__))
with open(HERE + "/vault.json") as f:
    STATE = json.load(f)
MODE = STATE.get("mode", "")
INPUT = sys.stdin.read() if "inject" in sys.argv[1:2] else ""
with open(HERE + "/op.log", "a") as log:
    log.write(json.dumps({
        "argv": sys.argv[1:], "stdin": INPUT or os.readlink("/proc/self/fd/0"), "uid": os.getuid(), "pid": os.getpid(),
        "home": os.environ.get("HOME"), "spark": [k for k in os.environ if k.startswith("SPARK_")],
    }) + "\n")


def fail(message, status=1):
    sys.stderr.write("[ERROR] 2026/11/25 03:14:15 " + message + "\n")
    sys.exit(status)


def value(reference):
    parts = reference[len("op://"):].split("?")[0].split("/")
    vault, item, field = parts[0], parts[1], "/".join(parts[2:])
    where = 'could not read secret \'%s\': ' % reference
    if vault not in STATE["vaults"]:
        fail(where + '"%s" isn\'t a vault in this account. Specify the vault with its ID or name.' % vault)
    found = STATE["vaults"][vault].get(item)
    if found is None:
        fail(where + '"%s" isn\'t an item in the "%s" vault. Specify the item with its UUID, name, or domain.' % (item, vault))
    if found == "twice":
        fail(where + 'More than one item matches "%s". Try again and specify the item by its ID' % item)
    if field not in found:
        fail(where + 'item \'%s/%s\' does not have a field \'%s\'' % (vault, item, field))
    return found[field]


if MODE == "signed-out":
    fail("account is not signed in")
if MODE == "prompt":
    sys.stdout.write("No accounts configured for use with 1Password CLI.\nDo you want to add an account manually now? [Y/n] ")
    sys.stdout.flush()
    sys.stdin.readline()
    fail("No accounts configured for use with 1Password CLI.")
if MODE == "limited":
    fail("(429) Too Many Requests: You've reached the maximum number of this type of requests this service account is allowed to make.")
if MODE == "refused":
    fail("(403) Forbidden: the service account token is not allowed to do that")
if MODE == "hang":
    if os.fork() == 0:
        with open(HERE + "/child.pid", "w") as f:
            f.write(str(os.getpid()))
    time.sleep(1000)
if MODE == "dies":
    os.kill(os.getpid(), 9)
if MODE == "huge":
    sys.stdout.write("x" * (1 << 20))
    sys.exit(0)
if MODE == "noisy":
    sys.stderr.write("[WARN] a newer version of op is available\n" * 5000)

if sys.argv[1:3] == ["read", "--no-newline"]:
    sys.stdout.write(value(sys.argv[3]))
elif sys.argv[1:] == ["inject"]:
    if "$" in INPUT:
        fail("variable is not set")
    sys.stdout.write(re.sub(r"\{\{\s*(op://[^}]*?)\s*\}\}", lambda m: value(m.group(1)), INPUT))
else:
    fail("unknown command %r for op" % sys.argv[1:])
