// What decides who reaches whom: programs at the devices of the router's namespace and at the host's end of its uplink.
//
// They are not rules of the packet filter: flushing that takes nothing away from them. Everything that is not known to be
// allowed is refused. See docs/network.md for the picture and docs/adr/0029 for the reasons.

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>

#include "helpers.h"

// What a packet is to the rules of the router's namespace, as its mark.
#define FROM_TRUSTED 2 // of a spark with --allow-host: it gets a sender's address of its own
#define BETWEEN 3      // to another spark, or a question for names: nobody has to remember it
// The mark without which nothing that the host forwards gets to sparks: the host's rules set it.
#define ANSWER 0x5350

// Flags of a spark.
#define ALLOW_HOST 1
#define LIMITED 2 // only what `egress` has

// Messages of ICMP and of ICMPv6: what both call echo requests, and what cannot be reached.
struct message {
    __u8 type, code;
    __u16 check;
    __u32 rest;
};
#define ICMP_ECHO 8
#define ICMP_DEST_UNREACH 3
#define ICMP_PORT_UNREACH 3
#define ICMP_PKT_FILTERED 13
#define ICMPV6_ECHO_REQUEST 128
#define ICMPV6_DEST_UNREACH 1
#define ICMPV6_PORT_UNREACH 4
#define ICMPV6_ADM_PROHIBITED 1

// Of a segment of TCP, what has no options.
struct segment {
    __be16 from_port, to_port;
    __be32 number, answers;
    __u8 length, flags;
    __be16 window, check, urgent;
};
#define TCP_RST 4
#define TCP_ACK 16

// An address of either family; one of IPv4 is ::ffff:a.b.c.d. The id of a project is as long.
struct address {
    __u32 word[4];
};

struct spark {
    struct address v4, v6, project;
    __u32 flags;
};

// Whose an address is.
struct place {
    struct address project;
    __u32 device;
};

// A reachable network, for one spark, with a port or without.
struct reach {
    __u32 bits;
    __u32 device;
    __u16 port, zero;
    struct address to;
};

struct network {
    __u32 bits;
    struct address to;
};

struct flow {
    struct address from, to;
    __u16 from_port, to_port;
    __u32 protocol;
};

// What is the same for all.
struct settings {
    struct address gateway;         // of sparks, where names are answered
    struct address plain[2];        // senders' addresses of sparks to beyond, by family
    struct address trusted[2];      // the same with --allow-host
};

#define MAP(name, kind, key_type, value_type, entries, how)                                                          \
    struct {                                                                                                              \
        __uint(type, kind);                                                                                               \
        __type(key, key_type);                                                                                            \
        __type(value, value_type);                                                                                        \
        __uint(max_entries, entries);                                                                                     \
        __uint(map_flags, how);                                                                                  \
    } name SEC(".maps")

// By the number of the device in the router's namespace.
MAP(sparks, BPF_MAP_TYPE_HASH, __u32, struct spark, 1 << 18, BPF_F_NO_PREALLOC);
MAP(places, BPF_MAP_TYPE_HASH, struct address, struct place, 1 << 19, BPF_F_NO_PREALLOC);
MAP(egress, BPF_MAP_TYPE_LPM_TRIE, struct reach, __u32, 1 << 20, BPF_F_NO_PREALLOC);
// Networks that nobody reaches (0), or only with --allow-host (1).
MAP(closed, BPF_MAP_TYPE_LPM_TRIE, struct network, __u32, 1 << 12, BPF_F_NO_PREALLOC);
MAP(settings, BPF_MAP_TYPE_ARRAY, __u32, struct settings, 1, 0);
// Devices of the host that sparks may reach beyond, besides those of the way to everywhere.
MAP(beyond, BPF_MAP_TYPE_HASH, __u32, __u32, 1 << 10, BPF_F_NO_PREALLOC);
// What has been sent to sparks by their own addresses, turned round: answers to that.
MAP(answers, BPF_MAP_TYPE_LRU_HASH, struct flow, __u32, 1 << 16, 0);

struct packet {
    struct flow flow;
    __u32 v6;     // or IPv4
    __u32 length; // of the network header
    __u32 later;  // a later piece of a packet
    __u32 error;  // to which no error is answered
};

INLINE int same(const struct address *a, const struct address *b) {
    return a->word[0] == b->word[0] && a->word[1] == b->word[1] && a->word[2] == b->word[2] && a->word[3] == b->word[3];
}

INLINE int has_ports(__u32 protocol) {
    return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == IPPROTO_SCTP;
}

INLINE int read_ports(struct __sk_buff *skb, struct packet *p) {
    struct {
        __u16 from, to;
    } ports;
    __u8 type;
    if (p->later)
        return 0;
    if (has_ports(p->flow.protocol)) {
        if (bpf_skb_load_bytes(skb, ETH_HLEN + p->length, &ports, sizeof ports))
            return -1;
        p->flow.from_port = ports.from;
        p->flow.to_port = ports.to;
    } else if (p->flow.protocol == IPPROTO_ICMP || p->flow.protocol == IPPROTO_ICMPV6) {
        if (bpf_skb_load_bytes(skb, ETH_HLEN + p->length, &type, 1))
            return -1;
        p->error = type != (p->v6 ? ICMPV6_ECHO_REQUEST : ICMP_ECHO);
    }
    return 0;
}

INLINE int read4(struct __sk_buff *skb, struct packet *p) {
    struct iphdr ip;
    if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof ip) || ip.version != 4 || ip.ihl < 5)
        return -1;
    p->flow.from.word[2] = p->flow.to.word[2] = bpf_htonl(0xffff);
    p->flow.from.word[3] = ip.saddr;
    p->flow.to.word[3] = ip.daddr;
    p->flow.protocol = ip.protocol;
    p->length = ip.ihl * 4;
    p->later = (ip.frag_off & bpf_htons(0x1fff)) != 0;
    return read_ports(skb, p);
}

INLINE int read6(struct __sk_buff *skb, struct packet *p) {
    struct ipv6hdr ip;
    if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof ip) || ip.version != 6)
        return -1;
    __builtin_memcpy(&p->flow.from, &ip.saddr, 16);
    __builtin_memcpy(&p->flow.to, &ip.daddr, 16);
    // Behind extension headers no ports are looked for: such a packet has none.
    p->flow.protocol = ip.nexthdr;
    p->length = sizeof ip;
    p->v6 = 1;
    return read_ports(skb, p);
}

// What a packet is. Negative for everything that is not IP: nobody here asks for addresses of Ethernet.
INLINE int read_packet(struct __sk_buff *skb, struct packet *p) {
    __builtin_memset(p, 0, sizeof *p);
    if (skb->protocol == bpf_htons(ETH_P_IP))
        return read4(skb, p);
    return skb->protocol == bpf_htons(ETH_P_IPV6) ? read6(skb, p) : -1;
}

INLINE __u16 folded(__s64 sum) {
    __u32 s = sum;
    s = (s & 0xffff) + (s >> 16);
    s = (s & 0xffff) + (s >> 16);
    return ~s;
}

// What an answer begins with, from whoever was meant: a frame, and the head of a packet with so many bytes behind it.
INLINE int frame_back(struct __sk_buff *skb, struct ethhdr *eth) {
    struct ethhdr was;
    if (bpf_skb_load_bytes(skb, 0, &was, sizeof was))
        return -1;
    *eth = was;
    __builtin_memcpy(eth->h_dest, was.h_source, ETH_ALEN);
    __builtin_memcpy(eth->h_source, was.h_dest, ETH_ALEN);
    return 0;
}

INLINE struct iphdr head4_back(const struct packet *p, __u8 protocol, __u16 length) {
    struct iphdr ip = {.version = 4, .ihl = 5, .ttl = 64, .protocol = protocol};
    ip.tot_len = bpf_htons(sizeof ip + length);
    ip.saddr = p->flow.to.word[3];
    ip.daddr = p->flow.from.word[3];
    ip.check = folded(bpf_csum_diff(0, 0, (__be32 *)&ip, sizeof ip, 0));
    return ip;
}

INLINE struct ipv6hdr head6_back(const struct packet *p, __u8 protocol, __u16 length) {
    struct ipv6hdr ip = {.version = 6, .hop_limit = 64, .nexthdr = protocol, .payload_len = bpf_htons(length)};
    __builtin_memcpy(&ip.saddr, &p->flow.to, sizeof ip.saddr);
    __builtin_memcpy(&ip.daddr, &p->flow.from, sizeof ip.daddr);
    return ip;
}

// Sends an answer in the place of a packet, by the device that this came from.
INLINE int send_back(struct __sk_buff *skb, const void *answer, __u32 length) {
    if (bpf_skb_change_tail(skb, length, 0) || bpf_skb_store_bytes(skb, 0, answer, length, 0))
        return TC_ACT_SHOT;
    return bpf_redirect(skb->ifindex, 0);
}

// Answers that there is nothing at that port, as whoever was meant. What has asked knows at once.
APART int refuse4(struct __sk_buff *skb, const struct packet *p) {
    struct told {
        struct message icmp;
        struct iphdr was;
        __u8 rest[8];
    } told;
    struct {
        struct ethhdr eth;
        struct iphdr ip;
        struct told told;
    } __attribute__((packed)) out;
    __builtin_memset(&told, 0, sizeof told);
    if (p->length != sizeof told.was || frame_back(skb, &out.eth) ||
        bpf_skb_load_bytes(skb, ETH_HLEN, &told.was, sizeof told.was + sizeof told.rest))
        return TC_ACT_SHOT;
    told.icmp.type = ICMP_DEST_UNREACH;
    told.icmp.code = has_ports(p->flow.protocol) ? ICMP_PORT_UNREACH : ICMP_PKT_FILTERED;
    told.icmp.check = folded(bpf_csum_diff(0, 0, (__be32 *)&told, sizeof told, 0));
    out.ip = head4_back(p, IPPROTO_ICMP, sizeof told);
    out.told = told;
    return send_back(skb, &out, sizeof out);
}

APART int refuse6(struct __sk_buff *skb, const struct packet *p) {
    struct told {
        struct message icmp;
        struct ipv6hdr was;
        __u8 rest[8];
    };
    struct {
        struct address from, to;
        __be32 length, protocol;
        struct told told;
    } summed;
    struct {
        struct ethhdr eth;
        struct ipv6hdr ip;
        struct told told;
    } __attribute__((packed)) out;
    struct told *told = &summed.told;
    __builtin_memset(&summed, 0, sizeof summed);
    if (frame_back(skb, &out.eth) || bpf_skb_load_bytes(skb, ETH_HLEN, &told->was, sizeof told->was + sizeof told->rest))
        return TC_ACT_SHOT;
    told->icmp.type = ICMPV6_DEST_UNREACH;
    told->icmp.code = has_ports(p->flow.protocol) ? ICMPV6_PORT_UNREACH : ICMPV6_ADM_PROHIBITED;
    summed.from = p->flow.to;
    summed.to = p->flow.from;
    summed.length = bpf_htonl(sizeof *told);
    summed.protocol = bpf_htonl(IPPROTO_ICMPV6);
    told->icmp.check = folded(bpf_csum_diff(0, 0, (__be32 *)&summed, sizeof summed, 0));
    out.ip = head6_back(p, IPPROTO_ICMPV6, sizeof *told);
    out.told = *told;
    return send_back(skb, &out, sizeof out);
}

// What resets the connection of a segment. Negative if that is one itself.
INLINE int reset_of(struct __sk_buff *skb, const struct packet *p, struct segment *reset) {
    struct segment was;
    __builtin_memset(reset, 0, sizeof *reset);
    if (bpf_skb_load_bytes(skb, ETH_HLEN + p->length, &was, sizeof was) || was.flags & TCP_RST)
        return -1;
    reset->from_port = was.to_port;
    reset->to_port = was.from_port;
    reset->length = sizeof *reset / 4 << 4;
    reset->flags = TCP_RST;
    if (was.flags & TCP_ACK) {
        reset->number = was.answers;
    } else {
        reset->flags |= TCP_ACK;
        reset->answers = bpf_htonl(bpf_ntohl(was.number) + 1);
    }
    return 0;
}

// Connections are reset, since a message about one that is just being made is not listened to.
APART int reset4(struct __sk_buff *skb, const struct packet *p) {
    struct {
        __be32 from, to;
        __be16 protocol, length;
        struct segment tcp;
    } summed;
    struct {
        struct ethhdr eth;
        struct iphdr ip;
        struct segment tcp;
    } __attribute__((packed)) out;
    if (reset_of(skb, p, &summed.tcp) || frame_back(skb, &out.eth))
        return TC_ACT_SHOT;
    summed.from = p->flow.to.word[3];
    summed.to = p->flow.from.word[3];
    summed.protocol = bpf_htons(IPPROTO_TCP);
    summed.length = bpf_htons(sizeof summed.tcp);
    summed.tcp.check = folded(bpf_csum_diff(0, 0, (__be32 *)&summed, sizeof summed, 0));
    out.ip = head4_back(p, IPPROTO_TCP, sizeof out.tcp);
    out.tcp = summed.tcp;
    return send_back(skb, &out, sizeof out);
}

APART int reset6(struct __sk_buff *skb, const struct packet *p) {
    struct {
        struct address from, to;
        __be32 length, protocol;
        struct segment tcp;
    } summed;
    struct {
        struct ethhdr eth;
        struct ipv6hdr ip;
        struct segment tcp;
    } __attribute__((packed)) out;
    if (reset_of(skb, p, &summed.tcp) || frame_back(skb, &out.eth))
        return TC_ACT_SHOT;
    summed.from = p->flow.to;
    summed.to = p->flow.from;
    summed.length = bpf_htonl(sizeof summed.tcp);
    summed.protocol = bpf_htonl(IPPROTO_TCP);
    summed.tcp.check = folded(bpf_csum_diff(0, 0, (__be32 *)&summed, sizeof summed, 0));
    out.ip = head6_back(p, IPPROTO_TCP, sizeof out.tcp);
    out.tcp = summed.tcp;
    return send_back(skb, &out, sizeof out);
}

INLINE int refuse(struct __sk_buff *skb, const struct packet *p) {
    if (p->error || p->later)
        return TC_ACT_SHOT;
    // At the uplink it goes out past `to_router`.
    skb->mark = ANSWER;
    if (p->flow.protocol == IPPROTO_TCP)
        return p->v6 ? reset6(skb, p) : reset4(skb, p);
    return p->v6 ? refuse6(skb, p) : refuse4(skb, p);
}

// Networks of which somebody is not: several machines, oneself, nobody.
INLINE int is_one_machine(const struct packet *p) {
    const struct address *to = &p->flow.to;
    __u32 first = bpf_ntohl(p->v6 ? to->word[0] : to->word[3]) >> 24;
    if (p->v6)
        return first != 0xff && first != 0 && first != 0xfe; // also not fe80::/10, and nothing that is mapped
    return first != 0 && first != 127 && first < 224;
}

INLINE int may_leave(const struct spark *s, __u32 device, const struct packet *p) {
    if (!(s->flags & LIMITED))
        return 1;
    struct reach to = {.bits = 192, .device = device, .port = p->flow.to_port, .to = p->flow.to};
    if (has_ports(p->flow.protocol) && p->flow.to_port && bpf_map_lookup_elem(&egress, &to))
        return 1;
    to.port = 0;
    return bpf_map_lookup_elem(&egress, &to) != 0;
}

// At a spark's device in the router's namespace, what comes from it.
SEC("classifier")
int from_spark(struct __sk_buff *skb) {
    struct packet p;
    __u32 device = skb->ifindex, zero = 0;
    struct spark *s = bpf_map_lookup_elem(&sparks, &device);
    struct settings *all = bpf_map_lookup_elem(&settings, &zero);
    if (!s || !all || read_packet(skb, &p) || !same(&p.flow.from, p.v6 ? &s->v6 : &s->v4))
        return TC_ACT_SHOT;
    skb->mark = 0;
    if (bpf_map_lookup_elem(&answers, &p.flow))
        return TC_ACT_OK;
    struct place *place = bpf_map_lookup_elem(&places, &p.flow.to);
    if (place) {
        skb->mark = BETWEEN;
        return same(&place->project, &s->project) ? TC_ACT_OK : refuse(skb, &p);
    }
    if (same(&p.flow.to, &all->gateway)) {
        int asks = p.flow.protocol == IPPROTO_UDP || p.flow.protocol == IPPROTO_TCP;
        skb->mark = BETWEEN;
        return asks && p.flow.to_port == bpf_htons(53) ? TC_ACT_OK : refuse(skb, &p);
    }
    if (!is_one_machine(&p))
        return p.v6 ? TC_ACT_SHOT : refuse(skb, &p);
    struct network to = {.bits = 128, .to = p.flow.to};
    __u32 *only_trusted = bpf_map_lookup_elem(&closed, &to);
    if (only_trusted && !(*only_trusted && s->flags & ALLOW_HOST))
        return refuse(skb, &p);
    if (!may_leave(s, device, &p))
        return refuse(skb, &p);
    if (s->flags & ALLOW_HOST)
        skb->mark = FROM_TRUSTED;
    return TC_ACT_OK;
}

// Whether it is for one of the addresses that sparks leave with.
INLINE int is_translated(const struct settings *all, const struct packet *p) {
    return same(&p->flow.to, &all->plain[p->v6 & 1]) || same(&p->flow.to, &all->trusted[p->v6 & 1]);
}

// At the router's end of the uplink, what comes from the host: for an address that sparks leave with, or a spark's own.
SEC("classifier")
int from_host(struct __sk_buff *skb) {
    struct packet p;
    __u32 zero = 0;
    struct settings *all = bpf_map_lookup_elem(&settings, &zero);
    if (!all || read_packet(skb, &p))
        return TC_ACT_SHOT;
    skb->mark = 0;
    if (is_translated(all, &p))
        return TC_ACT_OK;
    return bpf_map_lookup_elem(&places, &p.flow.to) ? TC_ACT_OK : TC_ACT_SHOT;
}

// The device by which the host would send a packet on to an address; 0 if it would not.
INLINE __u32 way(struct __sk_buff *skb, const struct packet *p, const struct address *to) {
    struct bpf_fib_lookup fib;
    __builtin_memset(&fib, 0, sizeof fib);
    fib.ifindex = skb->ifindex;
    fib.l4_protocol = p->flow.protocol;
    if (p->v6) {
        fib.family = 10; // AF_INET6
        __builtin_memcpy(fib.ipv6_src, &p->flow.from, 16);
        __builtin_memcpy(fib.ipv6_dst, to, 16);
    } else {
        fib.family = 2; // AF_INET
        fib.ipv4_src = p->flow.from.word[3];
        fib.ipv4_dst = to->word[3];
    }
    int result = bpf_fib_lookup(skb, &fib, sizeof fib, 0);
    return result == BPF_FIB_LKUP_RET_SUCCESS || result == BPF_FIB_LKUP_RET_NO_NEIGH ? fib.ifindex : 0;
}

// Whether the host sends it on by a device that has the way to everywhere, or by another one that sparks may use.
INLINE int leaves(struct __sk_buff *skb, const struct packet *p) {
    __u32 device = way(skb, p, &p->flow.to);
    if (!device || device == skb->ifindex)
        return 0;
    if (bpf_map_lookup_elem(&beyond, &device))
        return 1;
    // An address of documentation has no route of its own.
    struct address nowhere = {};
    if (p->v6)
        nowhere.word[0] = bpf_htonl(0x3fff0000);
    else
        nowhere.word[3] = bpf_htonl(0xc0000201);
    return way(skb, p, &nowhere) == device;
}

// At the host's end of the uplink, what comes from sparks. The host itself is not for them, whatever its addresses are: the
// kernel's table of routes is asked, and what it would deliver here is refused.
SEC("classifier")
int from_router(struct __sk_buff *skb) {
    struct packet p;
    __u32 zero = 0;
    struct settings *all = bpf_map_lookup_elem(&settings, &zero);
    if (!all || read_packet(skb, &p) || !is_one_machine(&p))
        return TC_ACT_SHOT;
    if (bpf_map_lookup_elem(&answers, &p.flow))
        return TC_ACT_OK;
    if (same(&p.flow.from, &all->trusted[p.v6 & 1]))
        return TC_ACT_OK;
    // Without the translation of the router's namespace nobody has this address.
    if (!same(&p.flow.from, &all->plain[p.v6 & 1]))
        return TC_ACT_SHOT;
    return leaves(skb, &p) ? TC_ACT_OK : refuse(skb, &p);
}

// The same place, what goes to sparks: what the host itself says, and what its rules have marked, which are answers, and
// what comes to published ports. Without its rules nothing from beyond gets in.
SEC("classifier")
int to_router(struct __sk_buff *skb) {
    struct packet p;
    __u32 zero = 0;
    struct settings *all = bpf_map_lookup_elem(&settings, &zero);
    if (!all || read_packet(skb, &p))
        return TC_ACT_SHOT;
    if (skb->ingress_ifindex != 0 && skb->mark != ANSWER)
        return TC_ACT_SHOT;
    // An answer to what was translated needs no answer in its turn that is not looked at. And what is known by its addresses
    // alone, as a piece of a packet is, would let everything else between the two pass.
    int is_known = !p.later && (has_ports(p.flow.protocol) || p.flow.protocol == IPPROTO_ICMP ||
                                p.flow.protocol == IPPROTO_ICMPV6);
    if (!is_known || is_translated(all, &p))
        return TC_ACT_OK;
    struct flow back = p.flow;
    back.from = p.flow.to;
    back.to = p.flow.from;
    back.from_port = p.flow.to_port;
    back.to_port = p.flow.from_port;
    __u32 one = 1;
    bpf_map_update_elem(&answers, &back, &one, BPF_ANY);
    return TC_ACT_OK;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
