# SPDX-License-Identifier: Apache-2.0
"""Rules that leak, one of each form, for the relay of `tests.system.kernel.topology`.

Peers are 10.66.0.0/16 behind ``tun0``, sites 198.18.0.0/16 behind ``out0``. 198.18.0.50 is exempt in some.
"""

from __future__ import annotations

HOOK = "type nat hook postrouting priority srcnat; policy accept;"
POOL = "203.0.113.10-203.0.113.17"
MANY = ", ".join(f"{at} : 203.0.113.{10 + at}" for at in range(8))
PAIRS = ", ".join(f"10.66.0.{at} : 203.0.113.{9 + at}" for at in range(1, 17))


def table(*rules: str, more: str = "", hook: str = HOOK, family: str = "ip") -> str:
    """A table of nft with one base chain."""
    lines = "\n    ".join(rules)
    return f"table {family} nat {{\n  {more}\n  chain post {{\n    {hook}\n    {lines}\n  }}\n}}\n"


def save(*lines: str, chains: str = "", more: str = "") -> str:
    """A table of iptables-save."""
    rules = "\n".join(f"-A {line}" for line in lines)
    return f"*nat\n:POSTROUTING ACCEPT [0:0]\n{chains}{rules}\nCOMMIT\n{more}"


NFT = {
    "persistent": table(f'oifname "out0" snat to {POOL} persistent'),
    "plain": table(f'oifname "out0" snat to {POOL}'),
    "random": table(f'oifname "out0" counter snat to {POOL} random,persistent comment "all peers"'),
    "prefix": table('oifname "out0" snat to 203.0.113.8/29 persistent'),
    "named set": table(
        f'ip daddr != @kept ip saddr @members oifname "out0" snat to {POOL} persistent',
        more="set members { type ipv4_addr; flags interval; elements = { 10.66.0.0/28 }; }\n"
        "  set kept { type ipv4_addr; elements = { 198.18.0.50 }; }",
    ),
    "exemption before": table("ip daddr 198.18.0.50 accept", f"snat to {POOL} persistent"),
    "return before": table("ip saddr 10.66.0.3 return", f'oifname "out0" snat to {POOL} persistent'),
    "jump": table(
        'oifname "out0" jump exits',
        more=f"chain exits {{ ip saddr 10.66.0.0/28 snat to {POOL} persistent; }}",
    ),
    "other priority": table(
        f'oifname "out0" snat to {POOL} persistent',
        hook="type nat hook postrouting priority srcnat + 5; policy accept;",
    ),
    "inet": table(f"meta nfproto ipv4 snat ip to {POOL} persistent", family="inet"),
    "states": table(f"ct state new,related snat to {POOL} persistent"),
    "a draw before": table(f"numgen random mod 2 0 snat to {POOL} persistent", "snat to 203.0.113.40"),
    "ports": table(f"meta l4proto udp snat to {POOL}:20000-29999 persistent,fully-random"),
    "seeded map": table(f"snat to jhash ip saddr mod 8 seed 0xdeadbeef map {{ {MANY} }}"),
    "seeded by site": table(f"snat to jhash ip saddr . ip daddr mod 8 seed 0x7 map {{ {MANY} }}"),
    "seeded verdicts": table(
        'iifname "tun0" jhash ip saddr mod 8 seed 0xdeadbeef vmap { '
        + ", ".join(f"{at} : jump e{at}" for at in range(8))
        + " }",
        more="\n  ".join(f"chain e{at} {{ snat to 203.0.113.{10 + at}; }}" for at in range(8)),
    ),
    "seeded comparison": table(
        *(f"jhash ip saddr mod 8 seed 0x7 {at} snat to 203.0.113.{10 + at}" for at in range(8))
    ),
    "netmap": table('oifname "out0" ip saddr 10.66.0.0/28 snat prefix to 203.0.113.0/28'),
    "netmap of a map": table(
        "snat ip prefix to ip saddr map { 10.66.0.0/29 : 203.0.113.0/29, 10.66.0.8/29 : 203.0.113.8/29 }"
    ),
    "mask and or": table('oifname "out0" snat ip to ip saddr & 0.0.0.15 | 203.0.113.0'),
    "map of ranges": table(
        f"snat ip to ip saddr map {{ 10.66.0.0/29 : {POOL}, "
        "10.66.0.8/29 : 203.0.113.20-203.0.113.27 } persistent"
    ),
    "one to one": table(f'oifname "out0" snat to ip saddr map {{ {PAIRS} }}'),
    "one to one, named": table(
        'oifname "out0" snat to ip saddr map @homes',
        more=f"map homes {{ type ipv4_addr : ipv4_addr; elements = {{ {PAIRS} }}; }}",
    ),
    "dedicated and shared": table(
        "snat to ip saddr map { 10.66.0.2 : 203.0.113.2, 10.66.0.3 : 203.0.113.3, "
        "10.66.0.8/29 : 203.0.113.9 }"
    ),
    "concatenated map": table(
        "snat to oifname . ip saddr map { "
        + ", ".join(f'"out0" . 10.66.0.{at} : 203.0.113.{9 + at}' for at in range(1, 9))
        + " }"
    ),
    "pairs": table(
        *(f'ip saddr 10.66.0.{at} oifname "out0" snat to 203.0.113.{9 + at}' for at in range(1, 9))
    ),
    "pairs and the rest": table(
        *(f'ip saddr 10.66.0.{at} oifname "out0" snat to 203.0.113.{9 + at}' for at in range(1, 9)),
        'oifname "out0" snat to 203.0.113.40',
    ),
    "pairs by verdicts": table(
        "ip saddr vmap { " + ", ".join(f"10.66.0.{at} : jump e{at}" for at in range(1, 9)) + " }",
        more="\n  ".join(f"chain e{at} {{ snat to 203.0.113.{9 + at}; }}" for at in range(1, 9)),
    ),
    "pairs in concatenated sets": table(
        *(f'ip saddr . oifname {{ 10.66.0.{at} . "out0" }} snat to 203.0.113.{9 + at}' for at in range(1, 9))
    ),
    "pairs by conntrack": table(
        *(f"ct original ip saddr 10.66.0.{at} snat ip to 203.0.113.{9 + at}" for at in range(1, 9)),
        family="inet",
    ),
    "everybody but one": table("ip saddr != 10.66.0.2 snat to 203.0.113.10", "snat to 203.0.113.11"),
    "bits": table(*(f"ip saddr & 0.0.0.7 == 0.0.0.{at} snat to 203.0.113.{10 + at}" for at in range(8))),
    "bits in a map": table(
        "snat to ip saddr & 0.0.0.7 map { "
        + ", ".join(f"0.0.0.{at} : 203.0.113.{10 + at}" for at in range(8))
        + " }"
    ),
    "blocks of ports": table(
        *(
            f"ip saddr 10.66.0.{at} meta l4proto udp snat to 203.0.113.10:{at * 2000}-{at * 2000 + 1999}"
            for at in range(1, 9)
        )
    ),
    "blocks of ports in a map": table(
        "ip protocol udp snat ip to ip saddr map @blocks",
        more="map blocks { type ipv4_addr : interval ipv4_addr . inet_service; flags interval; elements = { "
        + ", ".join(f"10.66.0.{at} : 203.0.113.10 . {at * 2000}-{at * 2000 + 1999}" for at in range(1, 9))
        + " }; }",
    ),
}

IPTABLES = {
    "persistent": save(f"POSTROUTING -o out0 -j SNAT --to-source {POOL} --persistent"),
    "plain before a catch-all": save(
        f"POSTROUTING -s 10.66.0.0/28 -o out0 -j SNAT --to-source {POOL}", "POSTROUTING -o out0 -j MASQUERADE"
    ),
    "user chain": save(
        "POSTROUTING -o out0 -j VPN_OUT",
        f"VPN_OUT -s 10.66.0.0/28 -j SNAT --to-source {POOL} --persistent",
        chains=":VPN_OUT - [0:0]\n",
    ),
    "exemptions": save(
        "POSTROUTING -s 10.66.0.0/28 -d 198.18.0.50/32 -j ACCEPT",
        "POSTROUTING -s 10.66.0.3/32 -d 198.18.0.2/32 -j RETURN",
        f"POSTROUTING -s 10.66.0.0/28 -j SNAT --to-source {POOL} --persistent",
    ),
    "return in a user chain": save(
        "POSTROUTING -o out0 -j VPN",
        "VPN -d 198.18.0.50/32 -j RETURN",
        f"VPN -j SNAT --to-source {POOL} --persistent",
        "POSTROUTING -d 198.18.0.50/32 -j SNAT --to-source 203.0.113.40",
        chains=":VPN - [0:0]\n",
    ),
    "an earlier rule that is well": save(
        "POSTROUTING -s 10.66.0.8/29 -j SNAT --to-source 203.0.113.40",
        f"POSTROUTING -j SNAT --to-source {POOL} --persistent",
    ),
    "ports": save(
        f"POSTROUTING -p udp -o out0 -j SNAT --to-source {POOL}:20000-29999 --random-fully --persistent"
    ),
    "dotted mask": save(f"POSTROUTING -s 10.66.0.0/255.255.255.240 -j SNAT --to-source {POOL} --persistent"),
    "two ranges": save(
        "POSTROUTING -m iprange --src-range 10.66.0.1-10.66.0.9 --dst-range 198.18.0.1-198.18.0.4 "
        f"-j SNAT --to-source {POOL} --persistent"
    ),
    "a condition of iptables alone": save(
        f"POSTROUTING -o out0 -m length --length 0:1500 -j SNAT --to-source {POOL} --persistent"
    ),
    "netmap": save("POSTROUTING -s 10.66.0.0/28 -o out0 -j NETMAP --to 203.0.113.0/28"),
    "pairs": save(
        *(
            f"POSTROUTING -s 10.66.0.{at}/32 -o out0 -j SNAT --to-source 203.0.113.{9 + at}"
            for at in range(1, 9)
        )
    ),
    "pairs and the rest": save(
        *(
            f"POSTROUTING -s 10.66.0.{at}/32 -o out0 -j SNAT --to-source 203.0.113.{9 + at}"
            for at in range(1, 9)
        ),
        "POSTROUTING -o out0 -j SNAT --to-source 203.0.113.40",
    ),
    "pairs by conntrack": save(
        *(
            f"POSTROUTING -m conntrack --ctorigsrc 10.66.0.{at} -j SNAT --to-source 203.0.113.{9 + at}"
            for at in range(1, 9)
        )
    ),
    "everybody but one": save(
        "POSTROUTING ! -s 10.66.0.2/32 -o out0 -j SNAT --to-source 203.0.113.10",
        "POSTROUTING -o out0 -j SNAT --to-source 203.0.113.11",
    ),
    "bits": save(
        *(
            f"POSTROUTING -s 0.0.0.{at}/0.0.0.7 -o out0 -j SNAT --to-source 203.0.113.{10 + at}"
            for at in range(8)
        )
    ),
    "blocks of ports": save(
        *(
            f"POSTROUTING -s 10.66.0.{at}/32 -p udp -j SNAT --to-source "
            f"203.0.113.10:{at * 2000}-{at * 2000 + 1999}"
            for at in range(1, 9)
        )
    ),
    "half of the flows": save(
        f"POSTROUTING -m statistic --mode random --probability 0.5 -j SNAT --to-source {POOL} --persistent",
        "POSTROUTING -j SNAT --to-source 203.0.113.40",
    ),
}

IP6TABLES = {
    "persistent": save("POSTROUTING -o out0 -j SNAT --to-source 2001:db8:e::10-2001:db8:e::17 --persistent"),
    "prefix translation": (
        "*mangle\n:POSTROUTING ACCEPT [0:0]\n"
        "-A POSTROUTING -s fd66::/64 -o out0 -j SNPT --src-pfx fd66::/64 --dst-pfx 2001:db8:e::/64\nCOMMIT\n"
    ),
    "pairs": save(
        *(f"POSTROUTING -s fd66::{at}/128 -o out0 -j SNAT --to-source 2001:db8:e::{at}" for at in range(1, 9))
    ),
}
