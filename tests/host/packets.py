"""Sends packets of all kinds at once, or takes them in, in a network namespace.

Every packet carries a word of its own. `hear` writes each word that arrives to its standard output. When it reads a line from
its standard input, it writes the line after all that has arrived before. `send` reads tries as JSON from its standard input.
"""

import errno, json, os, selectors, socket, struct, sys

PORT = 7077
GROUP4, GROUP6 = "239.255.0.1", "ff02::1"
FRAME = 0x88B5  # for experiments within one network


def checksum(data):
    total = sum(struct.unpack("!%dH" % ((len(data) + 1) // 2), data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF ^ total


def family(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def udp_packet(own, to, word):
    """A whole packet of IP, from whatever address."""
    version, length = family(to), 8 + len(word)
    source, target = (socket.inet_pton(version, address) for address in (own, to))
    pseudo = source + target + (struct.pack("!II", length, 17) if version == socket.AF_INET6 else struct.pack("!HH", 17, length))
    head = struct.pack("!HHH", 5555, PORT, length)
    segment = head + struct.pack("!H", checksum(pseudo + head + bytes(2) + word) or 0xFFFF) + word
    if version == socket.AF_INET6:
        return struct.pack("!IHBB", 6 << 28, length, 17, 64) + source + target + segment
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 1, 0, 64, 17, 0) + source + target
    return ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:] + segment


def frames():
    link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    link.bind(("eth0", 0))
    return link


def frame(link, kind, content, to=None):
    # Both ends of a pair have one address of Ethernet.
    own = link.getsockname()[4][:6]
    link.send((to or own) + own + struct.pack("!H", kind) + content)


def send(tries):
    link, waiting = frames(), []
    for what in tries:
        kind, to, word = what["kind"], what["to"], what["word"].encode()
        version = family(to)
        try:
            if kind == "tcp":
                stream = socket.socket(version, socket.SOCK_STREAM)
                stream.setblocking(False)
                stream.connect_ex((to, PORT))
                waiting.append((stream, word))
            elif kind == "udp":
                socket.socket(version, socket.SOCK_DGRAM).sendto(word, (to, PORT))
            elif kind == "icmp" and version == socket.AF_INET:
                message = struct.pack("!BBHI", 8, 0, 0, 1) + word
                message = message[:2] + struct.pack("!H", checksum(message)) + message[4:]
                socket.socket(version, socket.SOCK_RAW, socket.IPPROTO_ICMP).sendto(message, (to, 0))
            elif kind == "icmp":
                message = struct.pack("!BBHI", 128, 0, 0, 1) + word
                socket.socket(version, socket.SOCK_RAW, socket.IPPROTO_ICMPV6).sendto(message, (to, 0))
            elif kind in ("raw", "spoofed"):
                ethernet = 0x86DD if version == socket.AF_INET6 else 0x0800
                frame(link, ethernet, udp_packet(what["from"], to, word))
            elif kind == "multicast":
                group = socket.socket(version, socket.SOCK_DGRAM)
                if version == socket.AF_INET6:
                    group.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, socket.if_nametoindex("eth0"))
                    group.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 8)
                    group.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 0)
                else:
                    group.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 8)
                    group.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 0)
                group.sendto(word, (to, PORT))
            elif kind == "arp":
                # That the address of somebody else is here.
                lie = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 2) + link.getsockname()[4][:6]
                lie += socket.inet_aton(to) + b"\xff" * 6 + socket.inet_aton(to) + word
                frame(link, 0x0806, lie, b"\xff" * 6)
            elif kind == "frame":
                frame(link, FRAME, word, b"\xff" * 6)
        except OSError as e:
            # A spark that has no way there.
            if e.errno not in (errno.ENETUNREACH, errno.EACCES, errno.EHOSTUNREACH, errno.ECONNREFUSED, errno.EINVAL):
                raise
    # What connects says its word. The others are refused, or are given up when the last one, which nobody refuses, has
    # connected and everybody else has had as much time again.
    selector = selectors.DefaultSelector()
    for stream, word in waiting:
        selector.register(stream, selectors.EVENT_WRITE, word)
    while selector.get_map():
        ready = selector.select(0.3)
        if not ready:
            break
        for key, _ in ready:
            selector.unregister(key.fileobj)
            if key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                key.fileobj.sendall(key.data)


def listeners():
    taps = [socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(kind)) for kind in (FRAME, 0x0806)]
    datagrams = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    datagrams.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    datagrams.bind(("::", PORT))
    for _, name in socket.if_nameindex():
        index = socket.if_nametoindex(name)
        try:
            datagrams.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, socket.inet_pton(socket.AF_INET6, GROUP6) + struct.pack("@I", index))
            member = struct.pack("=4s4si", socket.inet_aton(GROUP4), bytes(4), index)
            datagrams.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
        except OSError:
            pass  # a device without one of the families
    pings = [
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
        socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6),
    ]
    return taps + [datagrams] + pings


def hear():
    streams = socket.create_server(("::", PORT), family=socket.AF_INET6, dualstack_ipv6=True, backlog=500)
    sources = listeners()
    selector = selectors.DefaultSelector()
    for source in sources + [streams]:
        source.setblocking(False)
        selector.register(source, selectors.EVENT_READ)
    selector.register(sys.stdin, selectors.EVENT_READ)
    print("ready", flush=True)
    ends = []
    while True:
        ready = selector.select(0 if ends else None)
        if not ready:
            # All that came before is told.
            print(*ends, sep="\n", flush=True)
            ends = []
        for key, _ in ready:
            if key.fileobj is sys.stdin:
                line = os.read(0, 4096).decode()
                if not line:
                    return
                ends += line.split()
                continue
            if key.fileobj is streams:
                stream = streams.accept()[0]
                stream.setblocking(False)
                selector.register(stream, selectors.EVENT_READ)
                continue
            try:
                data, *more = key.fileobj.recvfrom(4096)
            except OSError:
                data, more = b"", [()]
            if not data:
                selector.unregister(key.fileobj)
                key.fileobj.close()
                continue
            sender = more[0] or ("",)
            is_own = len(sender) == 5 and sender[2] == socket.PACKET_OUTGOING
            # Of messages, those that ask: errors have the words of others in them.
            is_ping = key.fileobj.type & 0xF == socket.SOCK_RAW and key.fileobj.family != socket.AF_PACKET
            if is_ping and 8 not in (data[0], data[20:21] and data[20]) and data[0] != 128:
                continue
            for word in data.split(b"<")[1:]:
                if not is_own:
                    print(word.split(b">")[0].decode(errors="replace"), flush=True)


if sys.argv[1] == "hear":
    hear()
else:
    # All of it goes through one processor, and so in one order.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    send(json.load(sys.stdin))
