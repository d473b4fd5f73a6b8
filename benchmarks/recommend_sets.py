"""The data sets of bench_recommend, split into what is learned from and what is asked."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayrec.data import complete_journey, events
from rayrec.data.histories import Cases, Histories, leave_one_out, next_baskets
from rayrec.evaluation.protocol import Judged, Score, judge
from rayrec.pipelines.recommending import short
from rayrec.schema import ITEMS

COLD_SHARE = 0.1


@dataclass(frozen=True)
class Set:
    """A dataset, split. only: places of test cases that a published figure is of, or None."""

    name: str
    items: pa.Table
    learned: Histories
    valid: Cases
    test: Cases
    mask_seen: bool
    metric: str
    only: np.ndarray | None = None

    @property
    def n(self) -> int:
        return self.items.num_rows

    def judge(self, score: Score, cases: Cases | None = None) -> Judged:
        return judge(
            self.test if cases is None else cases,
            score,
            n_items=self.n,
            learned=self.learned,
            mask_seen=self.mask_seen,
        )


def read_beauty(root: Path) -> Set:
    sequences = [
        [int(item) - 1 for item in line.split()[1:]]
        for line in (root / "amazon_beauty_s3rec" / "Beauty.txt").read_text().splitlines()
    ]
    table = pq.read_table(root / "amazon_beauty_s3rec" / "items.parquet").sort_by("item_id").to_pylist()
    attributes = json.loads((root / "amazon_beauty_s3rec" / "Beauty_item2attributes.json").read_text())
    rows = [
        {
            "item_id": f"{row['item_id']:05d}",
            "title": row["gram_lexical_id"].strip(),
            "attributes": [(f"a{number}", "yes") for number in attributes.get(str(row["item_id"]), [])],
        }
        for row in table
    ]
    learned, valid, test = leave_one_out(Histories.of_rows(sequences))
    return Set("beauty", pa.Table.from_pylist(rows, schema=ITEMS), learned, valid, test, True, "ndcg@10")


def read_games(root: Path) -> Set:
    folder = root / "amazon_games"
    table = pq.read_table(folder / "sequences_test.parquet").to_pylist()
    sequences = [[*map(int, row["history"].split()), row["target"]] for row in table]
    titles = pq.read_table(folder / "items.parquet").sort_by("item_id").column("title").to_pylist()
    items = pa.Table.from_pylist(
        [{"item_id": f"{row:05d}", "title": title} for row, title in enumerate(titles)], schema=ITEMS
    )
    asked = set(pq.read_table(folder / "candidates_sasrec.parquet").column("user_id").to_pylist())
    learned, valid, test = leave_one_out(Histories.of_rows(sequences))
    # of_rows names each history by its place
    only = np.array([case for case, user in enumerate(test.histories.users) if table[int(user)]["user_id"] in asked])
    return Set("games", items, learned, valid, test, True, "ndcg@10", only)


def read_journey(root: Path) -> Set:
    items, bought = complete_journey.tables(15_000)
    items = items.sort_by("item_id")
    histories = Histories.of(events.dedupe(bought), items.column("item_id").combine_chunks(), kinds=["purchase"])
    first, second = (int(np.quantile(histories.ts_us, share)) for share in (0.9, 0.95))
    learned, valid = next_baskets(histories, first, second)
    _, test = next_baskets(histories, second)
    return Set("journey", items, learned, short(valid), short(test), False, "recall@10")


READ = {"beauty": read_beauty, "games": read_games, "journey": read_journey}


def cold_of(data: Set, seed: int) -> Set:
    """The same without a tenth of the items in what is learned from; asked are the cases that want one of them."""
    cold = np.zeros(data.n, bool)
    cold[np.random.default_rng(seed).permutation(data.n)[: round(COLD_SHARE * data.n)]] = True

    def without(histories: Histories) -> Histories:
        return histories.where((histories.rows < 0) | ~cold[histories.rows])

    def cases(asked: Cases, wanted_cold: bool) -> Cases:
        chosen = np.flatnonzero(cold[asked.wanted] == wanted_cold)
        some = asked.take(chosen)
        return Cases(without(some.histories), some.wanted_start, some.wanted)

    return Set(
        "cold",
        data.items,
        without(data.learned),
        cases(data.valid, False),
        cases(data.test, True),
        data.mask_seen,
        data.metric,
    )
