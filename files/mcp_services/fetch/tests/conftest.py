from collections.abc import Iterator

import pytest
from hypothesis import settings
from sites import Site

settings.register_profile("gatehouse", database=None, deadline=None)
settings.load_profile("gatehouse")


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.close()
