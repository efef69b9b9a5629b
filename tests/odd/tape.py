"""Tar archives, byte by byte: what tar(1) would refuse to write too."""

BLOCK = 512
TIME = 1_000_000_000


def octal(value, width):
    """A number as POSIX has it: digits and a NUL."""
    return b"%0*o\0" % (width - 1, value)


def binary(value, width):
    """A number as GNU has it where digits do not suffice."""
    whole = value.to_bytes(width, "big", signed=True)
    return whole if value < 0 else bytes([whole[0] | 0x80]) + whole[1:]


def record(key, value):
    """`LENGTH KEY=VALUE\\n`, where the length counts itself."""
    rest = len(key) + len(value) + 3
    length = rest + 1
    while length != rest + len(str(length)):
        length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def padded(data, to=BLOCK):
    return data + bytes(-len(data) % to)


def header(name, kind=b"0", size=0, link=b"", mode=0o644, uid=0, gid=0, mtime=TIME, magic=b"ustar\x0000",
           prefix=b"", device=(0, 0), signed=False, checksum=b"%06o\0 ", **raw):
    """A header. A number may be given as bytes, as it is to stand there; `raw` puts bytes at an offset: at345=b"x"."""

    def number(value, width):
        return value if isinstance(value, bytes) else octal(value, width)

    fields = [
        (0, name[:100]), (100, number(mode, 8)), (108, number(uid, 8)), (116, number(gid, 8)),
        (124, number(size, 12)), (136, number(mtime, 12)), (148, b" " * 8), (156, kind), (157, link[:100]),
        (257, magic), (345, prefix),
    ]
    if magic:
        fields += [(329, octal(device[0], 8)), (337, octal(device[1], 8))]
    fields += [(int(key.removeprefix("at")), value) for key, value in raw.items()]
    block = bytearray(BLOCK)
    for at, value in fields:
        block[at:at + len(value)] = value
    total = sum(b - 256 if signed and b > 127 else b for b in block)
    text = checksum % total
    block[148:148 + len(text)] = text
    assert len(block) == BLOCK
    return bytes(block)


class Tape:
    """An archive that is being written."""

    def __init__(self):
        self.data = bytearray()
        self.ending = bytes(2 * BLOCK)

    def raw(self, data):
        self.data += data
        return self

    def add(self, name, data=b"", stored=None, **fields):
        """An entry with its content. `stored=b""` leaves the content out that the header announces."""
        fields.setdefault("size", len(data))
        self.data += header(name, **fields) + padded(data if stored is None else stored)
        return self

    def dir(self, name, mode=0o755, **fields):
        return self.add(name, kind=b"5", mode=mode, **fields)

    def pax(self, *records, kind=b"x"):
        data = b"".join(record(key, value) for key, value in records)
        return self.add(b"PaxHeaders/x", data, kind=kind)

    def long(self, kind, text):
        return self.add(b"././@LongLink", text + b"\0", kind=kind, magic=b"ustar  \0")

    def end(self):
        return bytes(self.data) + self.ending
