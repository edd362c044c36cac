from fedcombiner.servicekit.shares import by_largest_share


def test_the_largest_share_loses_its_first_until_it_is_as_small_as_another() -> None:
    things = ["b1", "a1", "a2", "a3", "a4", "b2"]
    assert list(by_largest_share(things, lambda thing: thing[0]))[:2] == ["a1", "a2"]
    assert sorted(by_largest_share(things, lambda thing: thing[0])) == sorted(things)
    assert list(by_largest_share([], str)) == []
