# SPDX-License-Identifier: Apache-2.0
"""A relay on this machine: peers, relay and internet as namespaces, tied together as one context manager.

::

    with Lab(peers=40) as lab:
        lab.apply("persistent")
        result = lab.send(lab.workload(2560))
        truth = lab.truth()
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from detector.base.errors import HostError, UsageError
from detector.base.family import Address, Family
from detector.base.ranges import AddressRange
from detector.lab import layout, mappings, wireguard
from detector.lab.layout import DEFAULT_POOLS
from detector.lab.namespaces import (
    Claim,
    Namespace,
    entered,
    ip_batch,
    require,
    sweep,
    termination_raises,
    undisturbed,
    write_sysctls,
)
from detector.lab.traffic import Result, Sender, echo_servers, retransmissions
from detector.lab.truth import Recording, Truth, forget, read_truth, recorded
from detector.lab.wireguard import Peer, Remote
from detector.lab.workload import FIRST_PORT, Flow, Workload, default_workload

EXIT_INTERFACE = "eth0"
_EVERYTHING = {Family.IPV4: "0.0.0.0/0", Family.IPV6: "::/0"}
_NO_EXTRA_DELAYS = {
    "ipv4/conf/all/rp_filter": 0,
    "ipv4/conf/default/rp_filter": 0,
    "ipv6/conf/all/accept_dad": 0,
    "ipv6/conf/default/accept_dad": 0,
    "ipv6/conf/default/accept_ra": 0,
}
# A machine that is busy answers late; only what is lost is to be sent again, so that it can be counted.
_PATIENT = "rto_min 5s"
_NO_PROBES = {"ipv4/tcp_early_retrans": 0}
# WireGuard's own sockets stay away from the ports that flows start from.
_OUTER_PORTS = {"ipv4/ip_local_port_range": f"1024 {FIRST_PORT - 1}"}
_FORWARDING = {"ipv4/ip_forward": 1, "ipv6/conf/all/forwarding": 1}
_KEEP_ENTRIES = {
    f"netfilter/nf_conntrack_{name}": 7200
    for name in (
        "udp_timeout",
        "udp_timeout_stream",
        *(
            f"tcp_timeout_{state}"
            for state in ("syn_sent", "syn_recv", "established", "fin_wait", "close_wait")
        ),
        *(
            f"tcp_timeout_{state}"
            for state in ("last_ack", "time_wait", "close", "unacknowledged", "max_retrans")
        ),
    )
}


class Lab:
    """A relay with its peers and an internet; everything is removed when the ``with`` block ends.

    Args:
        peers: 1 to 9999, canaries included.
        canaries: the first so many peers have the addresses of canaries.
        pools: exit pools, one per family; a family without a pool is not translated by a named mapping.
        destinations: hosts of the internet in each family.
        seed: decides tunnel addresses, destinations and the order of flows.
        routed: which peers have a global address of their own; nobody where it is None.
        user_space: True for ``wireguard-go``, False for the kernel's WireGuard, None for what there is.
        progress: called with a word on what is being done.

    Attributes:
        id: what the names of all that belongs to the lab hold.
        folder: for files that go when the lab goes.
        peers: with their keys and tunnel addresses.
        relay: the namespace in which the service runs; `clients` and `internet` are the others.
        wireguard_interface, exit_interface: the relay's.
        destinations: addresses of the internet, by family.
        tunnels: every tunnel address.
        implementation: ``kernel`` or ``wireguard-go``.
    """

    def __init__(
        self,
        *,
        peers: int = 40,
        canaries: int = 0,
        pools: Iterable[AddressRange] = DEFAULT_POOLS,
        destinations: int = 24,
        seed: int = 1,
        routed: layout.Routed | None = None,
        user_space: bool | None = None,
        progress: Callable[[str], None] = lambda _what: None,
    ) -> None:
        if not 1 <= peers <= layout.MAX_PEERS:
            raise UsageError(f"a lab has 1 to {layout.MAX_PEERS} peers, not {peers}")
        self.pools: Mapping[Family, AddressRange] = {pool.family: pool for pool in pools}
        self.destinations = layout.destinations(destinations, seed)
        self.exit_interface = EXIT_INTERFACE
        self.seed = seed
        self.peers: tuple[Peer, ...] = ()
        others = layout.tunnel_addresses(peers - canaries, seed)
        if routed is not None:
            others = routed.given(others, seed)
        self._addresses = [*layout.canary_addresses(canaries), *others]
        self._user_space = user_space
        self._progress = progress
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        require("ip", "nft", "conntrack", "wg")
        self._stack.enter_context(termination_raises())
        try:
            self._build()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        with undisturbed():
            self._stack.close()

    def _build(self) -> None:
        sweep()
        claim = Claim()
        self._stack.callback(claim.release)
        self.id, self.folder = claim.lab, claim.folder
        self.clients, self.relay, self.internet = map(claim.namespace, ("peers", "relay", "internet"))
        self.wireguard_interface = f"wg0-{self.id}"
        self._progress("making namespaces")
        self._lay_out_hosts()
        self._progress("starting WireGuard")
        self._start_wireguard()
        self._progress("starting the internet")
        addresses = [address for family in Family for address in self.destinations[family]]
        self._stack.enter_context(echo_servers(self.internet, addresses))

    @property
    def tunnels(self) -> frozenset[Address]:
        """Every tunnel address."""
        return frozenset(address for peer in self.peers for address in peer.tunnel.values())

    def secrets(self) -> list[str]:
        """What must be found nowhere outside: keys (private and public) and tunnel addresses, as text."""
        texts = [str(address) for address in self.tunnels]
        for peer in self.peers:
            texts += [peer.private_key, peer.public_key]
        return texts

    def apply(self, mapping: str | mappings.Mapping) -> None:
        """Replace the relay's NAT rules by a mapping, all at once; flows that live keep their exit.

        Raises:
            UsageError: there is no mapping of this name.
        """
        chosen = mappings.find(mapping) if isinstance(mapping, str) else mapping
        self.apply_text(chosen.ruleset(self.pools.values(), self.exit_interface), f"mapping {chosen.name}")

    def apply_file(self, path: Path) -> None:
        """Replace the relay's rules by a file of nftables text, all at once.

        Raises:
            UsageError: the file cannot be read, or nft does not accept it.
        """
        try:
            text = path.read_text()
        except (OSError, UnicodeDecodeError) as problem:
            reason = problem.strerror if isinstance(problem, OSError) else "not text"
            raise UsageError(f"cannot read the rules in {path}: {reason}") from None
        self.apply_text(text, str(path))

    def apply_text(self, text: str, name: str = "the rules") -> None:
        """Replace the relay's rules by nftables text, all at once; `name` stands for it in an error.

        Raises:
            UsageError: nft does not accept it; the rules stay as they were.
        """
        # On the line of the first one, so that nft's line numbers are those of the text.
        done = self.run(self.relay, ["nft", "-f", "-"], input=f"flush ruleset; {text}\n")
        if done.returncode:
            message = done.stderr.replace("/dev/stdin", name).strip()
            raise UsageError(f"nft does not accept {name}", f"it says:\n{message}")
        # Only now is conntrack sure to be there: a rule brings its module in.
        write_sysctls(self.relay, _KEEP_ENTRIES)

    def forget(self) -> None:
        """Remove every conntrack entry of the relay, so that the next rules decide every flow anew."""
        forget(self.relay)

    def workload(self, flows: int, *, seed: int | None = None) -> Workload:
        """The default workload for this lab's peers and destinations."""
        return default_workload(
            len(self.peers), flows, len(self.destinations[Family.IPV4]), self.seed if seed is None else seed
        )

    def send(
        self,
        work: Workload | Sequence[Flow],
        *,
        window: int = 96,
        patience: float = 15.0,
        progress: Callable[[int], None] = lambda _done: None,
    ) -> Result:
        """Start the flows of a workload, or of one phase, and wait for their answers.

        Args:
            work: which flows, in which order.
            window: flows in flight at once.
            patience: seconds after which a flow counts as unanswered.
            progress: called now and then with the number of flows that are done.

        Raises:
            HostError: a socket could not be opened.
        """
        workload = work if isinstance(work, Workload) else Workload((tuple(work),))
        result = Result(retransmitted=-self._retransmissions())
        sender = Sender(self.peers, self.destinations, window=window, patience=patience, progress=progress)
        with closing(sender), entered(self.clients):
            for number, phase in enumerate(workload.phases):
                time.sleep(workload.pause if number else 0)
                result += sender.run(phase)
        return result + Result(retransmitted=self._retransmissions())

    def truth(self) -> Truth:
        """What the relay's conntrack lists of the peers' flows."""
        return read_truth(self.relay, self.tunnels)

    def record(self, path: Path) -> AbstractContextManager[Recording]:
        """Meanwhile write new conntrack entries to a file, in the format of `recorded`."""
        return recorded(self.relay, path)

    def run(
        self, namespace: Namespace, command: Sequence[str], **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in a namespace and return what it printed."""
        with entered(namespace):
            return subprocess.run(list(command), check=False, text=True, capture_output=True, **options)

    def popen(self, namespace: Namespace, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a process in a namespace; it is ended with the lab if it is still there."""
        with entered(namespace):
            process = subprocess.Popen(list(command), **{"process_group": 0, **options})
        self._stack.callback(_stop, process)
        return process

    def _retransmissions(self) -> int:
        total = 0
        for namespace in (self.clients, self.internet):
            with entered(namespace):
                total += retransmissions()
        return total

    def _lay_out_hosts(self) -> None:
        clients, relay, internet = self.clients, self.relay, self.internet
        ip_batch(f"netns add {namespace.name}" for namespace in (clients, relay, internet))
        for namespace in (clients, relay, internet):
            write_sysctls(namespace, {**_NO_EXTRA_DELAYS, **_NO_PROBES})
        write_sysctls(relay, _FORWARDING)
        write_sysctls(clients, _OUTER_PORTS)
        cables = ((clients, "eth1"), (internet, EXIT_INTERFACE))
        ip_batch(
            f"link add eth0 netns {host.name} type veth peer name {port} netns {relay.name}"
            for host, port in cables
        )
        ip_batch(_client_host(), clients)
        ip_batch(_relay_host(), relay)
        ip_batch(_internet_host(self.destinations), internet)

    def _start_wireguard(self) -> None:
        backend, names = self._backend(), [f"wg-{self.id}-{number}" for number in range(len(self._addresses))]
        self.implementation = backend.name
        tunnels = zip(names, self._addresses, strict=True)
        settings = [
            line
            for number, (name, tunnel) in enumerate(tunnels)
            for line in _client_tunnel(number, name, tunnel)
        ]
        backend.create(self.clients, names, settings)
        backend.wait()
        keys = {name: wireguard.new_private_key() for name in (self.wireguard_interface, *names)}
        backend.set_key(self.relay, self.wireguard_interface, keys[self.wireguard_interface], wireguard.PORT)
        for name in names:
            backend.set_key(self.clients, name, keys[name], None)
        self.peers = tuple(
            Peer(number, name, self._addresses[number], keys[name], backend.public_key(self.clients, name))
            for number, name in enumerate(names)
        )
        self._connect(backend, backend.public_key(self.relay, self.wireguard_interface))

    def _backend(self) -> wireguard.Backend:
        """Make the relay's interface: the kernel's WireGuard, or wireguard-go where the kernel has none."""
        if not self._user_space:
            try:
                kernel = wireguard.KernelWireGuard()
                self._stack.callback(kernel.stop)
                kernel.create(self.relay, [self.wireguard_interface], _relay_tunnel(self.wireguard_interface))
            except HostError:
                if self._user_space is False:
                    raise
            else:
                return kernel
        user = wireguard.UserWireGuard()
        self._stack.callback(user.stop)
        user.create(self.relay, [self.wireguard_interface], _relay_tunnel(self.wireguard_interface))
        return user

    def _connect(self, backend: wireguard.Backend, relay_key: str) -> None:
        endpoint = (str(layout.OUTER[1]), wireguard.PORT)
        relay = Remote(relay_key, list(_EVERYTHING.values()), endpoint)
        for peer in self.peers:
            backend.add_peers(self.clients, peer.interface, [relay])
        backend.add_peers(
            self.relay,
            self.wireguard_interface,
            [Remote(peer.public_key, peer.allowed_ips()) for peer in self.peers],
        )


def _stop(process: subprocess.Popen[Any]) -> None:
    """End a process politely, then not."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _client_host() -> list[str]:
    return ["link set lo up", f"addr add {layout.OUTER[2]}/24 dev eth0", "link set eth0 up"]


def _relay_host() -> list[str]:
    uplink = [
        f"addr add {network[1]}/{network.prefixlen} dev {EXIT_INTERFACE} nodad"
        for network in layout.UPLINK.values()
    ]
    routes = [f"route add {layout.INTERNET[family]} via {layout.UPLINK[family][2]}" for family in Family]
    links = ["link set lo up", "link set eth1 up", f"link set {EXIT_INTERFACE} up"]
    return [*links, f"addr add {layout.OUTER[1]}/24 dev eth1", *uplink, *routes]


def _internet_host(destinations: Mapping[Family, Iterable[Address]]) -> list[str]:
    lines = ["link set lo up", "link set eth0 up"]
    for family, network in layout.UPLINK.items():
        lines.append(f"addr add {network[2]}/{network.prefixlen} dev eth0 nodad")
        # Whatever the rules make of a source address: the answer goes back to the relay.
        lines.append(f"route add {_EVERYTHING[family]} via {network[1]} {_PATIENT}")
        lines += [
            f"addr add {address}/{address.max_prefixlen} dev lo nodad" for address in destinations[family]
        ]
    return lines


def _relay_tunnel(interface: str) -> list[str]:
    addresses = [
        f"addr add {network[1]}/{network.prefixlen} dev {interface} nodad"
        for network in layout.TUNNELS.values()
    ]
    routes = [f"route add {network} dev {interface}" for network in layout.ROUTED.values()]
    return [f"link set {interface} up", *addresses, *routes]


def _client_tunnel(number: int, interface: str, tunnel: Mapping[Family, Address]) -> list[str]:
    # Every interface has a default route, told apart by its metric; sockets are bound to the interface.
    routes = [
        f"route add {everything} dev {interface} metric {number + 1} {_PATIENT}"
        for everything in _EVERYTHING.values()
    ]
    addresses = [
        f"addr add {address}/{address.max_prefixlen} dev {interface} nodad" for address in tunnel.values()
    ]
    return [f"link set {interface} up", *addresses, *routes]
