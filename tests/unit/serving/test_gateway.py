"""Under load the gateway steps down, says so, and refuses in time; a failing encoder costs meaning, not answers."""

import asyncio
import logging

import numpy as np
import pytest

from rayrec.config import ServeConfig
from rayrec.errors import Overloaded, Unavailable
from rayrec.request import RecommendRequest, SearchRequest
from rayrec.serving.backends import FusedBackend
from rayrec.serving.gateway import Gateway
from rayrec.serving.telemetry import Telemetry


class Held(FusedBackend):
    """The real backend, whose searches wait until they are let go; its encoder does what a test says."""

    def __init__(self, config, telemetry):
        super().__init__(config, telemetry)
        self.free = asyncio.Event()
        self.encoded = []
        self.encoder_error = None
        self.encoder_delay_s = 0.0

    async def vector(self, version, query):
        self.encoded.append(query)
        await asyncio.sleep(self.encoder_delay_s)
        if self.encoder_error is not None:
            raise self.encoder_error
        return await super().vector(version, query)

    async def search(self, *args):
        await self.free.wait()
        return await super().search(*args)

    async def recommend(self, *args):
        await self.free.wait()
        return await super().recommend(*args)


def run(ws, scenario, **settings):
    async def main():
        config = ServeConfig(workspace=ws.uri, **settings)
        telemetry = Telemetry()
        backend = Held(config, telemetry)
        return await scenario(Gateway(config, backend, telemetry, "r1"), backend)

    return asyncio.run(main())


def test_load_steps_down_to_words_to_popular_to_refusal(ws):
    async def scenario(gateway, backend):
        # of 8 in flight, the 4th is at half of the capacity, the 6th at three quarters, the 9th beyond it
        searches = [asyncio.create_task(gateway.search(SearchRequest(f"pizza {n}"))) for n in range(8)]
        await asyncio.sleep(0.1)
        with pytest.raises(Overloaded):
            await gateway.search(SearchRequest("pizza"))
        with pytest.raises(Overloaded):
            await gateway.recommend(RecommendRequest())
        backend.free.set()
        return await asyncio.gather(*searches), backend.encoded

    answers, encoded = run(ws, scenario, max_in_flight=8)
    assert encoded == ["pizza 0", "pizza 1", "pizza 2"]
    states = [(a["coverage"]["lexical"], a["coverage"]["dense"], a["coverage"]["degraded"]) for a in answers]
    assert states == [("ok", "ok", False)] * 3 + [("ok", "skipped", True)] * 2 + [("skipped", "skipped", True)] * 3
    assert all("busy" in a["coverage"]["why"] for a in answers[3:])
    assert all(a["hits"] for a in answers)
    popular = [hit["item_id"] for hit in answers[-1]["hits"]]
    assert popular != [hit["item_id"] for hit in answers[0]["hits"]]
    assert answers[-1]["cursor"] is None


def test_capacity_comes_back(ws):
    async def scenario(gateway, backend):
        backend.free.set()
        for _ in range(3):
            await asyncio.gather(*(gateway.search(SearchRequest("pizza")) for _ in range(2)))
        return await gateway.search(SearchRequest("pizza"))

    assert not run(ws, scenario, max_in_flight=4)["coverage"]["degraded"]


def test_a_shopper_gets_what_is_popular_while_busy(ws):
    async def scenario(gateway, backend):
        backend.free.set()
        calm = await gateway.recommend(RecommendRequest(user_id="u01"))
        backend.free.clear()
        others = [asyncio.create_task(gateway.search(SearchRequest())) for _ in range(3)]
        busy = asyncio.create_task(gateway.recommend(RecommendRequest(user_id="u01")))
        await asyncio.sleep(0.05)
        backend.free.set()
        stranger = gateway.recommend(RecommendRequest())
        answers = await asyncio.gather(busy, *others)
        return calm, answers[0], await stranger

    calm, busy, stranger = run(ws, scenario, max_in_flight=4)
    assert busy["coverage"]["degraded"]
    assert [h["item_id"] for h in busy["hits"]] == [h["item_id"] for h in stranger["hits"]]
    assert [h["item_id"] for h in calm["hits"]] != [h["item_id"] for h in stranger["hits"]]


def test_a_page_of_one_order_never_follows_a_page_of_another(ws):
    async def scenario(gateway, backend):
        backend.free.set()
        cursor = (await gateway.search(SearchRequest("pizza", page_size=3)))["cursor"]
        backend.encoder_error = RuntimeError("gone")
        gateway._vectors.clear()
        return await gateway.search(SearchRequest("pizza", page_size=3, cursor=cursor))

    with pytest.raises(Exception, match="other parts") as refused:
        run(ws, scenario)
    assert refused.value.code == "stale_cursor"


@pytest.mark.parametrize(
    ("error", "why"),
    [(RuntimeError("out of memory of 900"), "RuntimeError"), (Unavailable("the encoder is starting"), "starting")],
)
def test_words_answer_while_the_encoder_fails_and_the_failure_is_not_kept(ws, caplog, error, why):
    caplog.set_level(logging.DEBUG)

    async def scenario(gateway, backend):
        backend.free.set()
        backend.encoder_error = error
        failed = await gateway.search(SearchRequest("pizza"))
        backend.encoder_error = None
        return failed, await gateway.search(SearchRequest("pizza"))

    failed, healed = run(ws, scenario)
    assert (failed["coverage"]["dense"], failed["coverage"]["degraded"]) == ("failed", True)
    assert why in failed["coverage"]["why"]
    assert failed["total"] > 0
    assert (healed["coverage"]["dense"], healed["coverage"]["degraded"]) == ("ok", False)
    assert "900" not in caplog.text
    assert "pizza" not in caplog.text


def test_an_encoder_over_its_budget_costs_meaning_not_the_answer(ws):
    async def scenario(gateway, backend):
        backend.free.set()
        backend.encoder_delay_s = 30
        return await gateway.search(SearchRequest("pizza"))

    answer = run(ws, scenario, encode_budget_ms=20)
    assert answer["coverage"]["dense"] == "failed"
    assert "20 ms" in answer["coverage"]["why"]


def test_a_query_is_encoded_once_unless_nothing_is_kept(ws):
    async def scenario(gateway, backend):
        backend.free.set()
        for query in ("pizza", "  pizza ", "cable", "pizza"):
            await gateway.search(SearchRequest(query))
        return backend.encoded

    assert run(ws, scenario) == ["pizza", "cable"]
    assert run(ws, scenario, cached_vectors=0) == ["pizza", "pizza", "cable", "pizza"]


def test_words_and_no_query_are_not_encoded(ws):
    async def scenario(gateway, backend):
        backend.free.set()
        await gateway.search(SearchRequest("pizza", mode="lexical"))
        await gateway.search(SearchRequest())
        return backend.encoded

    assert run(ws, scenario) == []


def test_concurrent_queries_are_encoded_together(ws):
    async def scenario(gateway, backend):
        backend.free.set()
        await asyncio.gather(*(gateway.search(SearchRequest(f"pizza {n}")) for n in range(16)))
        samples = gateway.telemetry.snapshot()["rayrec_batch_size"][2]
        return samples[("rayrec_batch_size_count", (("stage", "encode"),))]

    assert run(ws, scenario) < 16


def test_vectors_that_are_kept_belong_to_their_version(ws):
    async def scenario(gateway, backend):
        backend.free.set()
        await gateway.search(SearchRequest("pizza"))
        [(pair, query)] = gateway._vectors
        return pair.index, query, gateway._vectors[pair, query]

    index, query, vector = run(ws, scenario)
    assert (index, query) == (ws.current().index, "pizza")
    assert vector.dtype == np.float32
