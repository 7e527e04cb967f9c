"""The tier as a daemon sees it: its members, connections to them, and which of them work."""

from __future__ import annotations

import logging
import ssl
import threading
import time
from collections.abc import Callable
from itertools import islice
from typing import NamedTuple

from csi_driver import telemetry
from csi_driver.model.replica import Replica
from csi_driver.objects.http.service_answers import ServiceAnswers
from csi_driver.objects.tier.ranking import fitting_share, is_in_share, ranking, usable_replicas
from csi_driver.objects.tier.replica_client import ReplicaClients
from csi_driver.objects.tier.replica_health import ReplicaHealth
from csi_driver.objects.tier.replica_pace import ReplicaPace
from csi_driver.objects.tier.slice_names import LinkSigner
from csi_driver.objects.tier.tier_counts import TierCounts, TierReport

logger = logging.getLogger(__name__)

MOST_ASKED = 2
"""Replicas for one request: then the bucket has the answer."""


class TierIdentity(NamedTuple):
    """How replicas and this node know each other."""

    key: bytes
    """Of the cluster: names slices, so that only those who have it can ask for one."""
    tls: ssl.SSLContext | None = None
    """With a client certificate. None: plain HTTP, and ``links`` signs each path."""
    server_name: str = ""
    """Of the replicas' certificate; empty: the host of each."""
    links: LinkSigner | None = None


class TierPolicy(NamedTuple):
    """What is asked of the tier."""

    replica_bytes: int = 0
    """What each replica can hold; 0: not known, and the tier is asked for everything."""
    zone: str = ""
    """Of this node; empty: not known."""
    cross_zone: bool = False
    timeout_s: float = 10.0
    """Without a byte for so long, a replica has failed."""


class Tier:
    """May be used from any thread. ``_lock`` guards ``_clients`` and ``_known``; not held across network."""

    def __init__(
        self,
        identity: TierIdentity,
        policy: TierPolicy,
        members: Callable[[], tuple[Replica, ...]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``members`` is called for each request: it returns at once, and the same value while nothing changes."""
        self._identity, self.policy, self._members = identity, policy, members
        self.key = identity.key
        self.counts = TierCounts()
        self.health = ReplicaHealth(policy.timeout_s, clock)
        self.pace = ReplicaPace(clock)
        self._lock = threading.Lock()
        self._clients: dict[tuple[Replica, int], tuple[ReplicaClients, ServiceAnswers]] = {}
        """By replica and kind of service."""
        self._known: tuple[tuple[Replica, ...], tuple[Replica, ...]] = ((), ())
        """The members as they were, and those of them that may be asked. Replaced as one value."""

    def share_of(self, dataset_bytes: int) -> float:
        """The share of such a dataset that the tier is asked for."""
        return fitting_share(self.policy.replica_bytes * len(self._usable()), dataset_bytes)

    def candidates(self, shard: str, share: float) -> list[Replica]:
        """The replicas to ask, in this order; none: the bucket is asked at once. Some of them may have failed. Those
        that are slow are passed over."""
        usable = self._usable()
        if not usable or not is_in_share(shard, share):
            return []
        ranked = ranking(usable, shard, self.policy.zone)
        return list(islice((replica for replica in ranked if self.pace.may_ask(replica.name)), MOST_ASKED))

    def clients(self, replica: Replica, answers: ServiceAnswers) -> ReplicaClients:
        """Connections to the replica. Sends nothing."""
        found = self._clients.get((replica, id(answers)))
        if found is not None:
            return found[0]
        with self._lock:
            found = self._clients.get((replica, id(answers)))
            if found is None:
                opened = ReplicaClients.open(
                    replica,
                    answers,
                    self.counts,
                    self.pace,
                    tls=self._identity.tls,
                    server_name=self._identity.server_name,
                    timeout_s=self.policy.timeout_s,
                )
                found = self._clients[replica, id(answers)] = opened, answers  # so that its id stays its own
            return found[0]

    def path(self, path: str) -> str:
        """The target of a request for the path."""
        links = self._identity.links
        return path if links is None else links.signed(path, time.time())

    def failed(self, replica: Replica, error: Exception) -> None:
        """Leaves the replica alone for a while. Logs its first failure in a row."""
        self.counts.failed()
        if self.health.failed(replica.name):
            facts = telemetry.fields(replica=replica.name, address=f"{replica.host}:{replica.port}", error=str(error))
            logger.warning(
                "a replica of the cluster's cache has failed; others and the bucket are asked instead", extra=facts
            )

    def report(self) -> TierReport:
        """For metrics."""
        names = [replica.name for replica in self._usable()]
        return self.counts.report(len(names), self.health.left_alone(names) + self.pace.passed_over())

    def close(self) -> None:
        """Closes what is idle."""
        with self._lock:
            for clients, _ in self._clients.values():
                clients.close()
            self._clients.clear()

    def _usable(self) -> tuple[Replica, ...]:
        members = self._members()
        known = self._known
        return known[1] if known[0] is members else self._changed(members)

    def _changed(self, members: tuple[Replica, ...]) -> tuple[Replica, ...]:
        with self._lock:
            usable = usable_replicas(members, self.policy.zone, cross_zone=self.policy.cross_zone)
            if set(members) != set(self._known[0]):
                logger.info("the cluster's cache has %d replicas; this node asks %d", len(members), len(usable))
            self._known = members, usable
            for place in [place for place in self._clients if place[0] not in usable]:
                self._clients.pop(place)[0].close()
            names = frozenset(replica.name for replica in usable)
            self.health.retain(names)
            self.pace.retain(names)
        return usable
