"""Which replica has which bytes, and under which name."""

from __future__ import annotations

import hashlib
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_driver.model.chunk import ByteRange
from csi_driver.model.replica import Replica
from csi_driver.objects.tier.ranking import (
    STRIPE_BYTES,
    fitting_share,
    is_in_share,
    ranking,
    shard_of,
    stripes,
    usable_replicas,
)
from csi_driver.objects.tier.slice_names import SliceNames

names = st.text("abcdefghij0123456789-.:", min_size=1, max_size=12)
replica_sets = st.lists(names, min_size=1, max_size=12, unique=True).map(
    lambda found: tuple(Replica(name, name, 8443) for name in found)
)
shards = st.text(min_size=1, max_size=30)
texts = st.text(max_size=20)


@pytest.mark.promise("S560")
@given(replica_sets, shards, st.randoms(use_true_random=False))
def test_the_ranking_does_not_depend_on_the_order_of_the_members(
    replicas: tuple[Replica, ...], shard: str, draw: object
) -> None:
    shuffled = list(replicas)
    draw.shuffle(shuffled)  # type: ignore[attr-defined]
    assert ranking(shuffled, shard) == ranking(replicas, shard)
    assert sorted(ranking(replicas, shard)) == sorted(replicas)


@pytest.mark.promise("S560")
@given(replica_sets, shards, st.data())
def test_a_replica_that_leaves_moves_its_own_shards_and_no_other(
    replicas: tuple[Replica, ...], shard: str, data: st.DataObject
) -> None:
    """And one that comes takes from the others what is now its own: the same statement, read backwards."""
    leaving = data.draw(st.sampled_from(replicas))
    before = ranking(replicas, shard)
    after = ranking([replica for replica in replicas if replica != leaving], shard)
    assert after == [replica for replica in before if replica != leaving]


@pytest.mark.promise("S560")
def test_each_of_n_replicas_has_a_share_of_one_nth() -> None:
    replicas = [Replica(f"hayloft-tier-{number}", "host", 8443) for number in range(8)]
    shards = [shard_of(hashlib.sha256(b"%d" % number).hexdigest(), 0) for number in range(20_000)]
    first = Counter(ranking(replicas, shard)[0].name for shard in shards)
    second = Counter(ranking(replicas, shard)[1].name for shard in shards)
    for counts in (first, second):
        assert len(counts) == 8
        assert all(2_200 < count < 2_800 for count in counts.values()), counts
    moved = sum(ranking(replicas, shard)[0] != ranking(replicas[:-1], shard)[0] for shard in shards)
    assert moved == first["hayloft-tier-7"]


@pytest.mark.promise("S560")
@given(replica_sets, shards)
def test_a_replica_with_another_address_keeps_its_shards(replicas: tuple[Replica, ...], shard: str) -> None:
    moved = [replica._replace(host="10.9.9.9", port=1) for replica in replicas]
    assert [replica.name for replica in ranking(moved, shard)] == [r.name for r in ranking(replicas, shard)]


@pytest.mark.promise("S566")
@given(st.lists(st.tuples(names, st.sampled_from(["", "a", "b"])), max_size=10, unique_by=lambda each: each[0]), shards)
def test_replicas_of_another_zone_are_not_asked_unless_it_is_allowed_and_then_last(
    members: list[tuple[str, str]], shard: str
) -> None:
    replicas = [Replica(name, name, 1, zone) for name, zone in members]
    assert {replica.zone for replica in usable_replicas(replicas, "a", cross_zone=False)} <= {"", "a"}
    assert usable_replicas(replicas, "", cross_zone=False) == tuple(replicas)
    everywhere = ranking(usable_replicas(replicas, "a", cross_zone=True), shard, "a")
    assert len(everywhere) == len(replicas)
    assert [replica.zone == "a" for replica in everywhere] == sorted(
        (replica.zone == "a" for replica in replicas), reverse=True
    )


@given(st.integers(0, 1 << 40), st.integers(0, 300 << 20))
def test_stripes_cover_the_range_and_none_passes_a_border(start: int, length: int) -> None:
    parts = stripes(ByteRange(start, start + length))
    assert sum(map(len, parts)) == length
    at = start
    for part in parts:
        assert part.start == at
        assert len({shard_of("x", part.start), shard_of("x", part.stop - 1)}) == 1
        assert part.start // STRIPE_BYTES == (part.stop - 1) // STRIPE_BYTES
        at = part.stop


@pytest.mark.promise("S565")
def test_of_a_dataset_larger_than_the_tier_a_fixed_share_is_asked_for() -> None:
    shards = [shard_of(hashlib.sha256(b"%d" % number).hexdigest(), 0) for number in range(20_000)]
    share = fitting_share(500, 1000)
    assert share == 0.5
    chosen = {shard for shard in shards if is_in_share(shard, share)}
    assert 9_500 < len(chosen) < 10_500
    assert {shard for shard in shards if is_in_share(shard, 0.25)} < chosen, "a smaller tier keeps a part of it"
    assert all(is_in_share(shard, fitting_share(1000, 500)) for shard in shards)
    assert fitting_share(0, 5) == fitting_share(5, 0) == 1.0


@pytest.mark.promise("S561")
@given(
    st.tuples(texts, texts, texts, texts, texts, st.none() | texts, texts),
    st.tuples(texts, texts, texts, texts, texts, st.none() | texts, texts),
)
def test_names_differ_with_domain_credential_store_object_and_version(
    one: tuple[str, str, str, str, str, str | None, str], other: tuple[str, str, str, str, str, str | None, str]
) -> None:
    def name(parts: tuple[str, str, str, str, str, str | None, str], key: bytes = b"k" * 32) -> str:
        domain, credential, endpoint, bucket, object_key, version_id, etag = parts
        names = SliceNames(key, domain, credential.encode(), endpoint, bucket)
        return names.name(object_key, version_id, etag)

    def shown(parts: tuple[str, str, str, str, str, str | None, str]) -> tuple[str, ...]:
        return tuple(part or "" for part in parts)

    assert (name(one) == name(other)) == (shown(one) == shown(other))
    assert name(one) != name(one, key=b"another key, of another cluster")
    assert len(name(one)) == 40
    assert set(name(one)) <= set("0123456789abcdef")
