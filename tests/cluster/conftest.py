"""Hosts of the laboratory are booted only for those who ask for them."""

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what is marked `cluster` unless `-m` names it: an expression such as "not slow" would start it all."""
    if "cluster" in str(config.getoption("-m")):
        return
    for item in items:
        if item.get_closest_marker("cluster"):
            item.add_marker(pytest.mark.skip(reason="boots hosts: ask for it with -m cluster"))
