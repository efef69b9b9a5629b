"""Compressions, and odd ways to use them."""

import bz2
import gzip
import lzma
import struct
import subprocess
import zlib

SKIPPABLE = struct.pack("<II", 0x184D2A50, 4) + b"skip"


def halves(data, pack):
    middle = len(data) // 2
    return pack(data[:middle]) + pack(data[middle:])


def gz(data):
    return gzip.compress(data, 1, mtime=0)


def zstd(data, *options):
    """From a pipe, so that a frame has the window that was asked for."""
    command = ["zstd", "-q", "-1", "-c", "--check", *options]
    return subprocess.run(command, input=data, stdout=subprocess.PIPE, check=True).stdout


def gz_with_fields(data):
    """A header with everything that a header may have: extra field, name, comment and its own checksum."""
    head = b"\x1f\x8b\x08" + bytes([2 | 4 | 8 | 16]) + struct.pack("<I", 7) + b"\0\3"
    head += struct.pack("<H", 4) + b"ab\0\0" + b"name\0" + b"comment\0"
    head += struct.pack("<H", zlib.crc32(head) & 0xFFFF)
    body = zlib.compressobj(6, zlib.DEFLATED, -15)
    packed = body.compress(data) + body.flush()
    return head + packed + struct.pack("<II", zlib.crc32(data), len(data) & 0xFFFFFFFF)


PACKINGS = {
    "gzip": gz,
    "gzip-members": lambda data: halves(data, gz),
    "gzip-empty-member": lambda data: gz(b"") + gz(data) + gz(b""),
    "gzip-fields": gz_with_fields,
    "gzip-trailing-zeros": lambda data: gz(data) + bytes(10240),
    "xz": lambda data: lzma.compress(data),
    "xz-streams": lambda data: halves(data, lzma.compress),
    "xz-padding": lambda data: lzma.compress(data) + bytes(8),
    "xz-crc32": lambda data: lzma.compress(data, check=lzma.CHECK_CRC32),
    "zstd": zstd,
    "zstd-frames": lambda data: halves(data, zstd),
    "zstd-skippable-first": lambda data: SKIPPABLE + zstd(data),
    "zstd-skippable-between": lambda data: halves(data, lambda half: zstd(half) + SKIPPABLE),
    "zstd-window-of-128-mib": lambda data: zstd(data, "--long=27"),
    "zstd-window-of-2-gib": lambda data: zstd(data, "--long=31"),
    "bzip2": bz2.compress,
    "xz-large-dictionary": lambda data: lzma.compress(
        data, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}]),
}
