"""The descriptors of open files: shares of namespaces and volumes, and what is given back."""

from __future__ import annotations

from csi_driver.filesystem.descriptor_budget import BLOCK, DescriptorBudget, DescriptorShare
from csi_driver.reading.fair_shares import Share

GREEDY, MODEST = Share("a", "store", "greedy"), Share("b", "store", "modest")


def opened(share: DescriptorShare, most: int) -> int:
    """How many files can be opened, one after the other."""
    return next((used for used in range(most) if not share.allows(used)), most)


def test_a_volume_has_a_share_and_leaves_the_others_theirs() -> None:
    budget = DescriptorBudget(100 * BLOCK)
    greedy = opened(budget.share(GREEDY), 100 * BLOCK)
    assert 20 * BLOCK < greedy <= 34 * BLOCK
    assert opened(budget.share(MODEST), 100 * BLOCK) > 10 * BLOCK


def test_the_volumes_of_a_namespace_leave_half_to_others() -> None:
    budget = DescriptorBudget(100 * BLOCK)
    shares = [budget.share(Share("a", f"store-{number}", f"volume-{number}")) for number in range(50)]
    assert sum(opened(share, 100 * BLOCK) for share in shares) <= 51 * BLOCK
    assert opened(budget.share(MODEST), 100 * BLOCK) > 10 * BLOCK


def test_what_is_not_needed_is_given_back() -> None:
    budget = DescriptorBudget(100 * BLOCK)
    first = budget.share(GREEDY)
    most = opened(first, 100 * BLOCK)
    first.trim(10)
    assert opened(budget.share(GREEDY), 100 * BLOCK) > most - 3 * BLOCK
    assert first.allows(10)


def test_a_mount_that_has_ended_holds_nothing() -> None:
    budget = DescriptorBudget(100 * BLOCK)
    first = budget.share(GREEDY)
    most = opened(first, 100 * BLOCK)
    first.close()
    assert not first.allows(0)
    assert opened(budget.share(GREEDY), 100 * BLOCK) == most


def test_opens_of_an_adopted_mount_count_although_they_were_not_granted() -> None:
    share = DescriptorBudget(100 * BLOCK).share(GREEDY)
    assert share.allows(5 * BLOCK)
    assert not share.allows(90 * BLOCK)
