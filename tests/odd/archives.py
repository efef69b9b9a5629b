"""Kinds of odd tar archives. Each writes entries below a directory of its own, and a file after them: if an entry is lost,
that is seen."""

import struct

from tape import BLOCK, TIME, Tape, binary, header, padded, record

KINDS = {}


def kind(function):
    KINDS[function.__name__.replace("_", "-")] = function
    return function


def fill(tape, name, directory, random):
    """Writes the entries of one kind."""
    KINDS[name](tape, directory, random)
    return tape.add(directory + b"after", b"after " + name.encode())


def some(random, most=2000):
    return random.randbytes(random.choice([0, 1, 511, 512, 513, random.randrange(most)]))


@kind
def plain(t, d, r):
    t.dir(d + b"dir", mode=0o750, uid=7, gid=8)
    t.add(d + b"dir/file", some(r), mode=0o4755, uid=1000, gid=1001)
    t.add(d + b"link", kind=b"2", link=b"dir/file")
    t.add(d + b"hard", kind=b"1", link=d + b"dir/file")
    t.add(d + b"pipe", kind=b"6", mode=0o600)


@kind
def before_posix(t, d, r):
    t.add(d + b"file", some(r), magic=b"", kind=b"\0")
    t.add(d + b"dir/", magic=b"", kind=b"\0", mode=0o700)
    t.add(d + b"link", kind=b"2", link=b"file", magic=b"")
    t.add(d + b"hard", kind=b"1", link=d + b"file", magic=b"")


@kind
def gnu(t, d, r):
    t.add(d + b"file", some(r), magic=b"ustar  \0", at345=b"%011o\0" % TIME)
    t.dir(d + b"dir/", magic=b"ustar  \0", at345=b"%011o\0%011o\0" % (TIME, TIME))


@kind
def size_of_a_symlink(t, d, r):
    t.add(d + b"target", b"content")
    t.add(d + b"link", kind=b"2", link=b"target", size=7)


@kind
def size_of_a_hard_link(t, d, r):
    t.add(d + b"target", b"content" * 100)
    t.add(d + b"hard", kind=b"1", link=d + b"target", size=r.choice([1, 700]))


@kind
def size_of_a_directory(t, d, r):
    t.dir(d + b"dir", size=4096)
    t.add(d + b"dir/file", b"x")


@kind
def size_of_a_fifo(t, d, r):
    t.add(d + b"pipe", kind=b"6", size=r.choice([1, 512, 4096]))


@kind
def size_of_a_device(t, d, r):
    t.add(d + b"node", kind=r.choice([b"3", b"4"]), device=(1, 3), size=512)


@kind
def pax_size_of_a_link(t, d, r):
    t.add(d + b"target", b"content")
    t.pax((b"size", b"7")).add(d + b"hard", kind=b"1", link=d + b"target")
    t.pax((b"size", b"7")).add(d + b"link", kind=b"2", link=b"target")


@kind
def pax_size_of_a_file(t, d, r):
    data = some(r)
    t.pax((b"size", b"%d" % len(data))).add(d + b"file", data, size=r.choice([0, 3]))


@kind
def file_with_a_slash(t, d, r):
    t.add(d + b"dir/", kind=b"0", mode=0o711)
    t.add(d + b"dir/file", b"x")


@kind
def contiguous(t, d, r):
    t.add(d + b"file", some(r), kind=b"7")


@kind
def directory_dump(t, d, r):
    t.add(d + b"dir/", b"Yfile\0\0", kind=b"D", mode=0o755, magic=b"ustar  \0")
    t.add(d + b"dir/file", b"x")


@kind
def volume_label(t, d, r):
    t.add(b"a label", kind=b"V", magic=b"ustar  \0")


@kind
def unknown_type(t, d, r):
    t.add(d + b"file", some(r), kind=r.choice([b"Z", b"B", b"9", b"~"]))


@kind
def long_names_of_gnu(t, d, r):
    name = d + b"n" * 120 + b"/" + b"f" * r.randrange(100, 255)
    target = b"t/" * r.randrange(60, 1000) + b"x"
    t.long(b"L", name).add(name, some(r), magic=b"ustar  \0")
    t.long(b"K", target).add(d + b"link", kind=b"2", link=target, magic=b"ustar  \0")
    t.long(b"K", name).long(b"L", name + b"2").add(b"x", kind=b"1", link=b"x", magic=b"ustar  \0")


@kind
def long_names_of_pax(t, d, r):
    name = d + b"p" * 200 + b"/" + "ä€".encode() * 40
    t.pax((b"path", name), (b"linkpath", b"x" * 300)).add(b"short", kind=b"2", link=b"y")


@kind
def long_names_of_both(t, d, r):
    t.pax((b"path", d + b"this")).long(b"L", d + b"not-this").add(b"short", some(r))


@kind
def prefix(t, d, r):
    magic = r.choice([b"ustar\x0000", b"ustar\0\0\0", b"ustar\x00  "])
    t.add(b"file", some(r), prefix=d + b"a" * (155 - len(d)), magic=magic)
    t.add(b"b" * 100, some(r), prefix=d + b"dir", magic=magic)


@kind
def of_star(t, d, r):
    times = {"at476": b"%011o " % TIME, "at488": b"%011o " % TIME, "at508": b"tar\0"}
    t.add(b"file", some(r), prefix=d + b"s" * 100, **times)
    t.add(d + b"short", b"x", **times)


@kind
def slashes_at_the_end(t, d, r):
    t.add(d + b"target", b"x").add(d + b"link/", kind=b"2", link=b"target").add(d + b"pipe/", kind=b"6")
    t.add(d + b"cont/", kind=b"7", mode=0o700)


@kind
def empty_fields(t, d, r):
    t.dir(d + b"dir", size=b"\0" * 12).add(d + b"link", kind=b"2", link=b"x", size=b"\0" * 12)
    t.add(d + b"file", b"x", mtime=b"\0" * 12, uid=b"\0" * 8, gid=b"\0" * 8)


@kind
def odd_device_numbers(t, d, r):
    t.add(d + b"file", b"x", at329=b"\xff" * 16).dir(d + b"dir", at329=b"garbage!" * 2)


@kind
def binary_numbers(t, d, r):
    data = some(r)
    t.add(d + b"file", data, size=binary(len(data), 12), uid=binary(5, 8), gid=binary(6, 8),
          mtime=binary(TIME, 12), magic=b"ustar  \0")
    t.add(d + b"old", b"x", mtime=binary(-5, 12), magic=b"ustar  \0")


@kind
def odd_octal(t, d, r):
    t.add(d + b"spaces", b"abc", size=b"          3 ", mode=b"   644 ", uid=b"     1 \0", gid=b"2\0\0\0\0\0\0\0")
    t.add(d + b"full", b"abc", size=b"000000000003", mode=b"00000644", mtime=b"07346545000 ")
    t.add(d + b"type-in-mode", b"x", mode=0o100640)


@kind
def odd_checksums(t, d, r):
    t.add(d + b"a", b"1", checksum=b"%07o\0")
    t.add(d + b"b", b"2", checksum=b"%6o\0 ")
    t.add(d + b"c", b"3", checksum=b"%06o  ")


@kind
def signed_checksum(t, d, r):
    t.add(d + b"\xff\xfe\xfd", some(r), signed=True)


@kind
def odd_times(t, d, r):
    for i, time in enumerate([b"1.5", b"-1.25", b"1234567890.123456789123", b"0", b"3000000000", b"1.000000001"]):
        t.pax((b"mtime", time), (b"atime", b"7"), (b"ctime", b"8.5")).add(d + b"f%d" % i, b"x")
    t.pax((b"mtime", b"5.75")).dir(d + b"dir")
    t.pax((b"mtime", b"6.25")).add(d + b"link", kind=b"2", link=b"x")


@kind
def global_comment(t, d, r):
    t.pax((b"comment", b"0123456789abcdef" * 3), kind=b"g")
    t.add(d + b"file", some(r))


@kind
def global_values(t, d, r):
    t.pax((b"mtime", b"77.5"), (b"uid", b"70"), (b"comment", b"c"), kind=b"g")
    t.add(d + b"global", b"x")
    t.pax((b"mtime", b"78"), (b"gid", b"71")).add(d + b"local", b"x")
    # GNU tar forgets what the header before said of other fields; pax(1) has it count until something else is said.
    t.pax((b"mtime", b"79"), (b"uid", b"72"), kind=b"g").add(d + b"later", b"x")
    t.pax((b"mtime", b"%d" % TIME), (b"uid", b"0"), kind=b"g")


@kind
def odd_pax(t, d, r):
    t.pax((b"path", d + b"a=b\nc"), (b"VENDOR.key", b"\0\1=\n"), (b"hdrcharset", b"BINARY"),
          (b"uname", b"nobody-here"), (b"gname", b"")).add(b"x", some(r))
    t.pax((b"path", d + b"first")).pax((b"path", d + b"second")).add(b"x", b"2")
    t.pax((b"path", d + b"of-solaris"), kind=b"X").add(b"x", b"3")
    t.pax((b"path", d + b"twice-a"), (b"path", d + b"twice-b")).add(b"x", b"4")
    t.pax().add(d + b"empty-pax", b"5")


@kind
def attributes(t, d, r):
    prefix = b"SCHILY.xattr."
    t.pax((prefix + b"user.a", b"x"), (prefix + b"user.bin", b"\0\n\xff" * 50)).add(d + b"file", b"x")
    t.pax((prefix + b"user.d", b"dir"), (prefix + b"trusted.x", b"y")).dir(d + b"dir")


@kind
def empty_attribute(t, d, r):
    t.pax((b"SCHILY.xattr.user.empty", b"")).add(d + b"file", b"x")


CAPABILITY = b"SCHILY.xattr.security.capability"


@kind
def capability(t, d, r):
    t.pax((CAPABILITY, struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0))).add(d + b"two", b"x", mode=0o755)
    t.pax((CAPABILITY, struct.pack("<6I", 0x03000001, 1 << 13, 0, 0, 0, 0))).add(d + b"three", b"x", mode=0o755)


@kind
def capability_of_another_root(t, d, r):
    root = r.choice([5, 1_000_000])
    t.pax((CAPABILITY, struct.pack("<6I", 0x03000001, 1 << 13, 0, 0, 0, root))).add(d + b"foreign", b"x", mode=0o755)


@kind
def sparse_of_gnu(t, d, r):
    pieces = [(512 * 4 * i, 512) for i in range(r.choice([1, 4, 30]))]
    data = r.randbytes(512 * len(pieces))
    end = pieces[-1][0] + 512 + r.choice([0, 5000])
    slots = [b"%011o\0%011o\0" % p for p in [*pieces, (end, 0)]]
    head, rest = b"".join(slots[:4]), slots[4:]
    t.raw(header(d + b"sparse", kind=b"S", size=len(data), magic=b"ustar  \0", at386=head,
                 at482=b"\1" if rest else b"\0", at483=b"%011o\0" % end))
    while rest:
        t.raw(b"".join(rest[:21]).ljust(504, b"\0") + (b"\1" if rest[21:] else b"\0") + bytes(7))
        rest = rest[21:]
    t.raw(data)


def sparse(r):
    """Pieces of whole blocks, as GNU tar reads them, their bytes, and the file's size. The last piece has what is left over, or
    nothing, and says where the file ends."""
    pieces = [(2048 * i + 512 * r.randrange(3), 512) for i in range(r.randrange(60))]
    size = 130_000 + r.randrange(9000)
    pieces.append(r.choice([(size, 0), (size - 77, 77)]))
    return pieces, r.randbytes(sum(length for _, length in pieces)), size


@kind
def sparse_of_pax_0_0(t, d, r):
    pieces, data, size = sparse(r)
    numbers = [(key, b"%d" % n) for p in pieces for key, n in zip((b"GNU.sparse.offset", b"GNU.sparse.numbytes"), p)]
    t.pax((b"GNU.sparse.size", b"%d" % size), (b"GNU.sparse.numblocks", b"%d" % len(pieces)), *numbers)
    t.add(d + b"sparse", data)


@kind
def sparse_of_pax_0_1(t, d, r):
    pieces, data, size = sparse(r)
    numbers = b",".join(b"%d,%d" % p for p in pieces)
    t.pax((b"GNU.sparse.size", b"%d" % size), (b"GNU.sparse.numblocks", b"%d" % len(pieces)),
          (b"GNU.sparse.map", numbers), (b"GNU.sparse.name", d + b"sparse"))
    t.add(d + b"GNUSparseFile.1/sparse", data)


@kind
def sparse_of_pax_1_0(t, d, r):
    pieces, data, size = sparse(r)
    numbers = b"%d\n" % len(pieces) + b"".join(b"%d\n%d\n" % p for p in pieces)
    t.pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"%d" % size),
          (b"GNU.sparse.name", d + b"sparse"))
    t.add(d + b"GNUSparseFile.1/sparse", padded(numbers) + data)


@kind
def only_a_hole(t, d, r):
    t.pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"70000"),
          (b"GNU.sparse.name", d + b"hole"))
    t.add(d + b"GNUSparseFile.1/hole", padded(b"1\n70000\n0\n"))


@kind
def twice(t, d, r):
    t.add(d + b"file", b"first", mode=0o600).add(d + b"file", b"second", uid=3)
    t.dir(d + b"dir", mode=0o700).dir(d + b"dir", mode=0o755, gid=4)
    t.add(d + b"to-link", b"x").add(d + b"to-link", kind=b"2", link=b"file")
    t.add(d + b"to-file", kind=b"2", link=b"file").add(d + b"to-file", b"not through the link")
    t.add(d + b"to-dir", b"x").dir(d + b"to-dir").add(d + b"to-dir/in", b"x")
    t.add(d + b"pipe", kind=b"6").add(d + b"pipe", b"a file now")


@kind
def replaced_by_a_device(t, d, r):
    t.add(d + b"x", b"first").add(d + b"x", kind=b"3", device=(1, 3))


@kind
def link_replaced_by_a_directory(t, d, r):
    t.dir(d + b"real").add(d + b"name", kind=b"2", link=b"real").dir(d + b"name").add(d + b"name/in", b"x")


@kind
def hard_links(t, d, r):
    t.add(d + b"a", b"x", mode=0o640).add(d + b"b", kind=b"1", link=d + b"a")
    t.add(d + b"c", kind=b"1", link=b"./" + d + b"b").add(d + b"sub/d", kind=b"1", link=d + b"c")
    t.add(d + b"s", kind=b"2", link=b"a").add(d + b"s2", kind=b"1", link=d + b"s")
    t.add(d + b"a2", b"y").add(d + b"a2", kind=b"1", link=d + b"a")


@kind
def devices(t, d, r):
    t.add(d + b"c", kind=b"3", device=(1, 3)).add(d + b"b", kind=b"4", device=(7, 200))
    t.add(d + b"hard", kind=b"1", link=d + b"c")


@kind
def odd_paths(t, d, r):
    t.add(b"./" + d + b"dot", b"x").add(b"//" + d + b"root", b"y").add(d + b"a//b/./c", b"z")
    t.dir(d + b"slash//").add(d + b"deep/er/than/before", b"w")


@kind
def root_itself(t, d, r):
    t.dir(r.choice([b"./", b".", b"/"]), mode=0o711, uid=9, gid=10, mtime=TIME + 5)


@kind
def odd_modes(t, d, r):
    t.dir(d + b"none", mode=0).add(d + b"none/in", b"x", mode=0)
    t.dir(d + b"sticky", mode=0o1777).dir(d + b"set", mode=0o2755).dir(d + b"ro", mode=0o555)
    t.add(d + b"ro/in", b"x", mode=0o6711)
    t.add(d + b"pipe", kind=b"6", mode=0o7640)


@kind
def large_ids(t, d, r):
    t.add(d + b"a", b"x", uid=65535, gid=65536)
    t.pax((b"uid", b"4294967294"), (b"gid", b"100000")).add(d + b"b", b"x")
    t.dir(d + b"c", uid=0o7777777)


@kind
def odd_names(t, d, r):
    for name in [b"\xff\xfe", b"new\nline", b"\x1b[31m", b"-rf", b" ", b"*", b'"\\', "ä".encode(), b"n" * 90]:
        t.add(d + name, name)


@kind
def odd_targets(t, d, r):
    for i, target in enumerate([b"/etc/passwd", b"../../../up", b".", b"a//b", b"\xff", b"x" * 100]):
        t.add(d + b"l%d" % i, kind=b"2", link=target)


@kind
def late_directory(t, d, r):
    t.add(d + b"dir/file", b"x").dir(d + b"dir", mode=0o2750, uid=4, mtime=TIME + 9).add(d + b"dir/more", b"y")


@kind
def below_a_link(t, d, r):
    t.dir(d + b"usr/lib").add(d + b"lib", kind=b"2", link=b"usr/lib").add(d + b"lib/x.so", b"x")


# How an archive ends, and what it is packed in. Each changes the whole.
ENDS = {
    "no-end": lambda t, r: b"",
    "one-zero-block": lambda t, r: bytes(BLOCK),
    "padded-to-a-record": lambda t, r: bytes(-len(t.data) % 10240 + 10240),
    "much-after-the-end": lambda t, r: bytes(17 << 20),
    "something-after-the-end": lambda t, r: bytes(2 * BLOCK) + header(b"behind", size=0) + r.randbytes(700),
}
