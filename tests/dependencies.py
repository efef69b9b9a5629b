#!/usr/bin/env python3
"""Checks the dependencies against deny.toml: bans, sources and licences.

usage: dependencies.py [CHECKOUT]

`cargo deny` does this and more, and takes minutes to compile on a new machine; `tests/run.sh --full` runs it. This reads
the same deny.toml, Cargo.lock and what `cargo metadata` tells. The last line is `N passed, N failed`.
"""

import collections
import copy
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path


def bans(policy, metadata, lock):
    """Crates that are denied by name, and requirements of ours that take any version."""
    denied = {entry["crate"] if isinstance(entry, dict) else entry for entry in policy["bans"].get("deny", [])}
    for package in lock["package"]:
        if package["name"] in denied:
            yield f"{package['name']} {package['version']} is banned"
    if policy["bans"].get("wildcards") == "deny":
        for package in metadata["packages"]:
            if package["id"] in metadata["workspace_members"]:
                for needed in package["dependencies"]:
                    if needed["req"] == "*" and not needed.get("path"):
                        yield f"{package['name']} takes any version of {needed['name']}"


def sources(policy, _metadata, lock):
    """Packages from anywhere but the registry, and those whose content no checksum fixes."""
    assert policy["sources"] == {"unknown-registry": "deny", "unknown-git": "deny"}, "this check knows no other"
    everything = collections.Counter(package.get("source", "") for package in lock["package"])
    registry = next(source for source, _ in everything.most_common() if source.startswith("registry+"))
    for package in lock["package"]:
        source = package.get("source")
        name = f"{package['name']} {package['version']}"
        if source is None:
            if package["name"] != "sparks":
                yield f"{name} comes from a directory"
        elif source != registry:
            yield f"{name} comes from {source}"
        elif "checksum" not in package:
            yield f"{name} has no checksum"


def licenses(policy, metadata, _lock):
    """Packages that are under no licence which deny.toml allows."""
    allowed = set(policy["licenses"]["allow"])
    clarified = {entry["crate"]: entry["expression"] for entry in policy["licenses"].get("clarify", [])}
    for package in metadata["packages"]:
        expression = clarified.get(package["name"]) or package["license"]
        name = f"{package['name']} {package['version']}"
        if not expression:
            yield f"{name} names no licence"
        elif not satisfied(expression, allowed):
            yield f"{name} is under {expression}"


def satisfied(expression, allowed):
    """Whether an SPDX expression (annex D of the specification) can be met by the licences allowed."""
    tokens = re.findall(r"[()]|[^\s()]+", expression.replace("/", " OR "))
    tokens.reverse()

    def either():
        value = both()
        while tokens and tokens[-1] == "OR":
            tokens.pop()
            value = both() or value
        return value

    def both():
        value = one()
        while tokens and tokens[-1] == "AND":
            tokens.pop()
            value = one() and value
        return value

    def one():
        token = tokens.pop()
        if token == "(":
            value = either()
            assert tokens.pop() == ")", expression
            return value
        if tokens and tokens[-1] == "WITH":
            tokens.pop()
            token = f"{token} WITH {tokens.pop()}"
        return token in allowed

    value = either()
    assert not tokens, expression
    return value


def would_be_found(policy, metadata, lock):
    """What each check has to find, in copies with one fault each."""
    metadata, lock, policy = copy.deepcopy(metadata), copy.deepcopy(lock), copy.deepcopy(policy)
    ours = next(p for p in metadata["packages"] if p["id"] in metadata["workspace_members"])
    other = next(p for p in metadata["packages"] if p["id"] not in metadata["workspace_members"])
    ours["dependencies"].append({"name": "any", "req": "*"})
    other["license"] = "MIT AND GPL-3.0-only"
    policy["bans"]["deny"] = [{"crate": other["name"]}]
    lock["package"].append({"name": "g", "version": "1.0.0", "source": "git+https://example.org/g#0"})
    yield bans, f"{other['name']} {other['version']} is banned", (policy, metadata, lock)
    yield bans, "sparks takes any version of any", (policy, metadata, lock)
    lock["package"].append({"name": "r", "version": "1.0.0", "source": "registry+https://example.org/index"})
    yield sources, "g 1.0.0 comes from git+https://example.org/g#0", (policy, metadata, lock)
    yield sources, "r 1.0.0 comes from registry+https://example.org/index", (policy, metadata, lock)
    yield licenses, f"{other['name']} {other['version']} is under MIT AND GPL-3.0-only", (policy, metadata, lock)


def main():
    checkout = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent)
    policy = tomllib.loads((checkout / "deny.toml").read_text())
    lock = tomllib.loads((checkout / "Cargo.lock").read_text())
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--all-features"]
    for target in policy["graph"]["targets"]:
        command += ["--filter-platform", target]
    metadata = json.loads(subprocess.run(command, cwd=checkout, check=True, stdout=subprocess.PIPE).stdout)
    passed = failed = 0
    for check in (bans, sources, licenses):
        faults = list(check(policy, metadata, lock))
        for fault in faults:
            print(f"not ok - {check.__name__}: {fault}")
        failed += bool(faults)
        passed += not faults
    for check, fault, changed in would_be_found(policy, metadata, lock):
        if fault in check(*changed):
            passed += 1
        else:
            failed += 1
            print(f"not ok - {check.__name__} does not find: {fault}")
    print(f"{passed} passed, {failed} failed")
    return failed > 0


sys.exit(main())
