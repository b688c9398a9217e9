"""Which client a request comes from, when proxies stand in front: by X-Forwarded-For, as far as
whoever wrote it is trusted.

Each proxy adds the address it was asked from at the header's end, so the header is read from
there, and only from trusted ones: what stands further left may have been made up.
"""

import ipaddress
from collections.abc import Iterable

_MOST_HOPS = 16

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Proxies:
    """The trusted ones: addresses and networks; or a number, of how many stand in front,
    whatever their addresses; `*` is one.

    Without any only a Unix socket is trusted: nobody but a proxy on this machine has it.
    Raises ValueError.
    """

    def __init__(self, trusted: Iterable[str]) -> None:
        named = ["1" if name == "*" else name for name in trusted]
        self._hops = 0
        self._networks: tuple[Network, ...] = ()
        if len(named) == 1 and named[0].isdecimal():
            self._hops = int(named[0])
            if not 1 <= self._hops <= _MOST_HOPS:
                raise ValueError(f"{named[0]} proxies? 1 to {_MOST_HOPS} can be counted")
        else:
            self._networks = tuple(_network(name) for name in named)

    def client(self, peer: str, forwarded: str) -> str:
        """The client's address. `peer`: who is connected, `""` by a Unix socket; `forwarded`:
        the header. What is no address ends the way, and so does an untrusted one."""
        client = _address(peer) or peer
        for hop, entry in enumerate(reversed(forwarded.split(","))):
            address = _address(entry)
            if address is None or not self._trusts(client, hop):
                break
            client = address
        return client or "unix"

    def _trusts(self, address: str, hop: int) -> bool:
        if not address:
            return True
        if hop < self._hops:
            return True
        known = ipaddress.ip_address(address) if self._networks else None
        return any(known in network for network in self._networks)


def _network(name: str) -> Network:
    try:
        network = ipaddress.ip_network(name, strict=False)
    except ValueError:
        raise ValueError(
            f"{name!r} is no proxy: addresses and networks (10.0.0.0/8) are, or *, or a number"
        ) from None
    return network


def _address(text: str) -> str | None:
    """The address in its usual form, without a port; None if it is none."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    # An IPv6 socket tells IPv4 clients in this form.
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)
