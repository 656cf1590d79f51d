from __future__ import annotations

import pytest

from headrace.deployment import answer_of, result_of
from headrace.errors import HeadraceError, NotFound, TooManyRequests, Unavailable


async def fail(error: HeadraceError) -> None:
    raise error


async def done() -> int:
    return 7


async def test_a_result_crosses_ray() -> None:
    assert result_of(await answer_of(done())) == 7


@pytest.mark.parametrize(
    "error",
    [
        NotFound("no job"),
        Unavailable("the keys' Redis is away", retry_after_s=1.0),
        TooManyRequests("10 jobs", retry_after_s=10.0, reason="jobs"),
    ],
)
async def test_an_error_crosses_ray_with_its_time_to_retry(error: HeadraceError) -> None:
    answer = await answer_of(fail(error))
    with pytest.raises(type(error), match=error.message) as raised:
        result_of(answer)
    assert (raised.value.retry_after_s, raised.value.reason) == (error.retry_after_s, error.reason)
