"""What is in a tree, entry by entry, and how two trees differ."""

import hashlib
import os
import stat

NOBODY = 65534


def attributes(path, link):
    if link:
        return {}
    return {name: os.getxattr(path, name) for name in os.listxattr(path) if keeps(name, os.getxattr(path, name))}


def keeps(name, value):
    """What Sparks keeps: docs/security.md."""
    foreign = len(value) == 24 and value[3] == 3 and value[20:] != bytes(4)
    return name.startswith("user.") or (name == "security.capability" and not foreign)


def content(path, mode):
    if stat.S_ISLNK(mode):
        return os.readlink(path)
    if stat.S_ISREG(mode):
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return None


def describe(root, since):
    """Every path with its type, mode, owner, group, time, size, content, attributes, and the first of its names. Device nodes
    are left out, and ids beyond a spark's are nobody's, as docs/images.md says. A time since `since` is the unpacking's own."""
    root, found, first = os.fsencode(root), {}, {}

    def visit(path, name):
        info = os.lstat(path)
        if stat.S_ISCHR(info.st_mode) or stat.S_ISBLK(info.st_mode):
            return
        ids = [i if i < 65536 else NOBODY for i in (info.st_uid, info.st_gid)]
        is_dir = stat.S_ISDIR(info.st_mode)
        found[name] = {
            "mode": oct(info.st_mode), "ids": ids,
            "time": "now" if info.st_mtime >= since else info.st_mtime_ns,
            "size": None if is_dir else info.st_size,
            "content": content(path, info.st_mode),
            "attributes": attributes(path, stat.S_ISLNK(info.st_mode)),
            "first": None if is_dir else first.setdefault(info.st_ino, name),
        }
        if is_dir:
            for entry in sorted(os.listdir(path)):
                visit(path + b"/" + entry, name + b"/" + entry if name else entry)

    visit(root, b"")
    return found


def differences(theirs, ours):
    """A line for each."""
    lines = []
    for name in sorted({*theirs, *ours}):
        a, b = theirs.get(name), ours.get(name)
        if a is None or b is None:
            lines.append(f"{name!r} is only in {'ours' if a is None else 'theirs'}")
        elif a != b:
            what = ", ".join(f"{key}: theirs {a[key]}, ours {b[key]}" for key in a if a[key] != b[key])
            lines.append(f"{name!r} differs: {what}")
    return lines
