r"""Embed a catalog on the cluster this job was submitted to.

    ray job submit --working-dir . -- \
        python jobs/embed_catalog.py --workspace s3://shop/ws --config jobs/configs/embed.yaml

The last line is the summary as JSON. Repeating the job embeds only what is missing.
"""

import argparse
import json
import time

from rayrec.config import EmbedConfig
from rayrec.pipelines.embed import embed
from rayrec.workspace import Workspace

_EVERY_S = 10.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", required=True, help="directory or URI that every node reaches")
    parser.add_argument("--config", help="YAML, see jobs/configs/embed.yaml")
    args = parser.parse_args()
    told = time.monotonic()

    def tell(done: int, total: int, rows_per_s: float) -> None:
        nonlocal told
        if done == total or time.monotonic() - told >= _EVERY_S:
            told = time.monotonic()
            left_s = (total - done) / max(rows_per_s, 1e-9)
            print(f"embedded {done} of {total}, {rows_per_s:.0f} rows/s, {left_s:.0f} s left", flush=True)

    summary = embed(EmbedConfig.load(args.config), Workspace.open(args.workspace), address="auto", on_progress=tell)
    print(json.dumps(summary.to_dict()))


if __name__ == "__main__":
    main()
