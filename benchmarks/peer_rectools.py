"""SASRec of RecTools for bench_recommend, in an interpreter that has it: python peer_rectools.py FOLDER SECONDS.

Reads FOLDER/in.npz, trains until the seconds are over, writes FOLDER/top.npy: int64 (cases, 50), the items shown to
each test case, best first. Its last line is what it took.
"""

import json
import resource
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import Callback
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel

FACTORS, LENGTH, SHOWN = 64, 50, 50


def interactions(start: np.ndarray, rows: np.ndarray) -> pd.DataFrame:
    lengths = np.diff(start)
    place = np.arange(len(rows)) - np.repeat(start[:-1], lengths)
    return pd.DataFrame(
        {
            Columns.User: np.repeat(np.arange(len(lengths)), lengths),
            Columns.Item: rows,
            Columns.Weight: 1.0,
            Columns.Datetime: pd.Timestamp("2020-01-01") + pd.to_timedelta(place, unit="D"),
        }
    )


class Clock(Callback):
    """Ends the training when the time is over, and counts what was seen."""

    def __init__(self, seconds: float):
        self.seconds, self.epochs, self.batches, self.spent = seconds, 0, 0, 0.0

    def on_train_start(self, trainer: Trainer, module: object) -> None:
        self.started = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        self.batches += 1
        self.spent = time.perf_counter() - self.started
        if self.spent > self.seconds:
            trainer.should_stop = True
            trainer.fit_loop.epoch_loop.max_steps = trainer.global_step

    def on_train_epoch_end(self, *_: object) -> None:
        self.epochs += 1


def main() -> None:
    folder, seconds = Path(sys.argv[1]), float(sys.argv[2])
    torch.set_num_threads(2)
    torch.manual_seed(0)
    given = np.load(folder / "in.npz")
    clock = Clock(seconds)

    def trainer() -> Trainer:
        return Trainer(
            max_epochs=1_000,
            callbacks=[clock],
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            logger=False,
        )

    model = SASRecModel(
        n_blocks=1,
        n_heads=1,
        n_factors=FACTORS,
        session_max_len=LENGTH,
        dropout_rate=0.2,
        loss="sampled_softmax",
        n_negatives=256,
        lr=1e-3,
        batch_size=128,
        get_trainer_func=trainer,
        recommend_torch_device="cpu",
    )
    learned = interactions(given["learned_start"], given["learned_rows"])
    started = time.perf_counter()
    model.fit(Dataset.construct(learned))
    train_s = time.perf_counter() - started
    # it trains a copy of the trainer, and of the clock in it
    clock = next(callback for callback in model.fit_trainer.callbacks if isinstance(callback, Clock))
    positions = int(np.maximum(0, np.minimum(np.diff(given["learned_start"]), LENGTH + 1) - 1).sum())
    users = int((np.diff(given["learned_start"]) > 1).sum())
    cases = len(given["test_start"]) - 1
    asked = Dataset.construct(interactions(given["test_start"], given["test_rows"]))
    top = np.full((cases, SHOWN), -1)
    found = model.recommend(
        users=np.arange(cases), dataset=asked, k=SHOWN, filter_viewed=True, on_unsupported_targets="ignore"
    )
    top[found[Columns.User].to_numpy(), found[Columns.Rank].to_numpy() - 1] = found[Columns.Item].to_numpy()
    np.save(folder / "top.npy", top)
    epochs = clock.batches * 128 / max(1, users)
    print(
        json.dumps(
            {
                "train_s": round(train_s, 1),
                "epochs": round(epochs, 2),
                "events_per_s": round(epochs * positions / max(clock.spent, 1e-9)),
                "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            }
        )
    )


if __name__ == "__main__":
    main()
