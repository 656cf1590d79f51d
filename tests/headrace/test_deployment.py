from __future__ import annotations

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from headrace.deployment import Away, CallFailed, answer_of, on_ray, result_of
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


async def test_a_process_that_is_away_and_one_that_raises_are_told_apart() -> None:
    with pytest.raises(Away, match=r"^the pool is away") as away:
        async with on_ray("pool", 1.0):
            raise ActorDiedError
    assert away.value.kind == "ActorDiedError" and away.value.http_status == 503
    # Ray raises it as a class that is also the cause's, so that both can be caught.
    raised = RayTaskError("watch", "its traceback", KeyError("m")).as_instanceof_cause()
    with pytest.raises(CallFailed, match=r"^the pool failed at a call") as failed:
        async with on_ray("pool", 1.0):
            raise raised
    assert failed.value.kind == "KeyError" and failed.value.http_status == 500
