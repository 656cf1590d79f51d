"""Large pictures on the running system, on real Ray: a shard dies, the system restarts."""

from __future__ import annotations

import io
import json
import os
import signal
import time
from collections.abc import Iterator
from functools import cache
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from PIL import Image

from loadtests.processes import free_ports
from tests.sharding.media_files import array, photograph
from tests.sharding.stage_house import REPOSITORY
from tests.system.running import Running, config, running, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]

PLACES = ((32, 64), (2528, 200), (700, 1400), (1700, 960))
SMALL, LARGE = (544, 576), (3072, 2048)
"""Width and height: of the astronaut at the first place alone, and of all of them."""
FACES = {
    "runtime": "onnx",
    "batching": {"max_rows": 1},
    "replicas": {"min": 2, "max": 2},
    "sharding": {
        "kind": "image-tiles",
        "tile": 512,
        "overlap": 256,
        "preprocess": "centerface",
        "postprocess": "centerface",
        "boxes": {"iou": 0.3},
    },
}
SLOW = {"tile": 256, "overlap": 160}
"""So many parts that a job is not done while the system stops."""

Document = dict[str, Any]


@cache
def astronauts(size: tuple[int, int]) -> bytes:
    """The astronaut at each place that is in the picture, on grey noise, as JPEG."""
    width, height = size
    whole = np.random.default_rng(3).integers(90, 130, (height, width, 3), dtype=np.uint8)
    astronaut = array(photograph("astronaut.png"))
    for x, y in PLACES:
        if x + 512 <= width and y + 512 <= height:
            whole[y : y + 512, x : x + 512] = astronaut
    file = io.BytesIO()
    Image.fromarray(whole).save(file, "JPEG", quality=95)
    return file.getvalue()


def assert_whole(result: Document, *places: tuple[int, int]) -> None:
    """No part is missing or told twice, and the face is found at each place."""
    assert "missing" not in result and not result["notes"]
    parts = [shard["part"] for shard in result["shards"]]
    assert parts == list(range(len(parts))) and parts
    wanted = sorted([181 + x, 58 + y, 269 + x, 177 + y] for x, y in places)
    assert np.allclose(sorted(box["box"] for box in result["boxes"]), wanted, atol=5)


def process(system: Running, picture: bytes) -> Iterator[Document]:
    """The events of a streamed request, as they come."""
    headers = {"Accept": "application/x-ndjson", "Content-Type": "image/jpeg"}
    url = f"{system.url}/v1/models/faces:process"
    with httpx.stream("POST", url, content=picture, headers=headers, timeout=60) as answer:
        assert answer.status_code == 200, answer.read()
        yield from map(json.loads, answer.iter_lines())


def sent_again(system: Running) -> float:
    """How many parts were in work on a slot when it died, since the system started."""
    token = (system.home / "admin.token").read_text().strip()
    headers = {"Authorization": f"Bearer {token}"}
    text = httpx.get(f"http://{system.admin}/metrics", headers=headers, timeout=10).text
    lines = (line for line in text.splitlines() if line.startswith("headrace_retries_total{"))
    return sum(float(line.rpartition(" ")[2]) for line in lines)


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Two slots, and `faces` on both; the last test stops it."""
    document = config(REPOSITORY, free_ports(3), slots=2, models={"faces": FACES})
    with running(tmp_path_factory.mktemp("media"), document) as system:
        yield system


def test_a_shard_killed_in_the_middle_of_a_picture_loses_nothing(system: Running) -> None:
    wait_for(lambda: len(system.ready_slots("faces")) == 2, "both slots")
    plan, *parts, last = kill_after_the_first_part(system)
    disturbed = last["result"]
    assert plan["shards"] == 2
    assert sorted(event["part"] for event in parts) == list(range(plan["parts"]))
    assert_whole(disturbed, *PLACES)
    assert len(disturbed["shards"]) == plan["parts"]
    # Of its half it had done next to nothing, and some it had in work.
    victim = parts[0]["shard"]
    assert sum(event["shard"] == victim for event in parts) < plan["parts"] // 4
    wait_for(lambda: sent_again(system) >= 1, "a part that was in work on the killed slot")

    replace_slots(system, {event["shard"] for event in parts} - {victim})
    *_, last = process(system, astronauts(LARGE))
    calm = last["result"]
    assert_whole(calm, *PLACES)
    assert not any(shard["cached"] for shard in calm["shards"])
    assert calm["boxes"] == disturbed["boxes"]


def kill_after_the_first_part(system: Running) -> list[Document]:
    """All events of a request whose first part was the last deed of its slot."""
    pids = {slot["slot_id"]: slot["pid"] for slot in system.status()["slots"]}
    seen: list[Document] = []
    for event in process(system, astronauts(LARGE)):
        if event["event"] == "part" and seen[-1]["event"] == "plan":
            os.kill(pids[event["shard"]], signal.SIGKILL)
        seen.append(event)
    return seen


def replace_slots(system: Running, used: set[str]) -> None:
    """Kill these, so that nothing is found in their caches, and wait for two others."""
    for slot in used:
        os.kill(system.pid_of(slot), signal.SIGKILL)

    def two_others() -> bool:
        ready = set(system.ready_slots("faces"))
        return len(ready) == 2 and not ready & used

    wait_for(two_others, "two slots that have done no part yet", 60)


def test_jobs_survive_a_restart_and_the_one_that_ran_is_finished(system: Running) -> None:
    done = ended(system, submit(system, astronauts(SMALL)))
    assert_whole(done["result"], PLACES[0])
    left = submit(system, astronauts(LARGE), **SLOW)
    wait_for(lambda: job(system, left)["progress"]["done"], "a part of the second job")
    assert system.stop() == 0
    assert system.survivors() == []
    stopped_s = time.time()
    with running(system.file.parent, yaml.safe_load(system.file.read_text())) as again:
        assert job(again, done["id"]) == done
        finished = ended(again, left)
    assert finished["started"] > stopped_s
    assert_whole(finished["result"], *PLACES)
    assert len(finished["result"]["shards"]) == finished["progress"]["parts"]


def submit(system: Running, picture: bytes, **options: int) -> str:
    """Ask for a picture to be answered later; the id of its job."""
    headers = {"Prefer": "respond-async", "Content-Type": "image/jpeg"}
    url = f"{system.url}/v1/models/faces:process"
    answer = httpx.post(url, content=picture, params=options, headers=headers, timeout=60)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def job(system: Running, job_id: str) -> Document:
    """`GET /v1/jobs/{id}`."""
    answer = httpx.get(f"{system.url}/v1/jobs/{job_id}", timeout=10)
    assert answer.status_code == 200, answer.text
    found: Document = answer.json()
    return found


def ended(system: Running, job_id: str) -> Document:
    """A job's document once it has ended, which must be well."""
    last = wait_for(
        lambda: (now := job(system, job_id))["ended"] is not None and now, "the end of the job", 60
    )
    assert last["state"] == "done", last.get("error")
    return dict(last)
