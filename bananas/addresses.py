"""Which addresses belong to the world outside, and which to a machine, its networks or a cloud's own services.

Asked about where a name leads that somebody else wrote: in the egress of sandboxes, for callbacks
(``runner.webhook``), and by the gateway, which refuses a callback to such an address at once.
"""

from __future__ import annotations

import ipaddress

from bananas.targets import literal

#: IPv4 inside IPv6: translated by a NAT64 gateway.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def is_public(address: str) -> bool:
    """May a name lead there? Not to private, loopback, link-local, multicast, reserved or unspecified addresses.

    An IPv6 address that carries an IPv4 address (mapped, NAT64, 6to4, Teredo) counts as both.
    """
    ip = ipaddress.ip_address(address)
    carried: list[ipaddress.IPv4Address | None] = []
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        if ip.is_site_local:
            return False
        carried += [ip.sixtofour, *(ip.teredo or ())]
        if ip in _NAT64:
            carried.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
    bad = ip.is_private or ip.is_loopback or ip.is_link_local or ip.is_multicast or ip.is_reserved or ip.is_unspecified
    return ip.is_global and not bad and all(is_public(str(v4)) for v4 in carried if v4 is not None)


def place(host: str, port: int) -> str:
    """``host:port`` in one spelling, by which places are compared.

    >>> place("Hooks.Local", 80), place("FD00:0::5", 443)
    ('hooks.local:80', '[fd00::5]:443')
    """
    address = literal(host)
    if address is not None and address.version == 6:
        return f"[{address}]:{port}"
    return f"{host.lower()}:{port}"
