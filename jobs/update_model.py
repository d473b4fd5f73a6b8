r"""Train the model that answers on new events, on the cluster this job was submitted to; promote it through the gate.

    ray job submit --no-wait --working-dir . -- \
        python jobs/update_model.py --workspace s3://shop/ws --config jobs/configs/update.yaml --every 6h

The last line is the summary as JSON; with --every there is a line each round, and one that fails is told and repeated.
"""

import argparse
import json
from functools import partial

from rayrec.config import UpdateConfig
from rayrec.pipelines.schedule import repeat, seconds_of, until_stopped
from rayrec.pipelines.update import update
from rayrec.workspace import Workspace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", required=True, help="directory or URI that every node reaches")
    parser.add_argument("--config", help="YAML, see jobs/configs/update.yaml")
    parser.add_argument("--every", type=seconds_of, help="30m, 6h, 1d: go on until stopped")
    args = parser.parse_args()
    tell = partial(print, flush=True)
    ws, config = Workspace.open(args.workspace, create=False), UpdateConfig.load(args.config)
    if args.every is None:
        tell(json.dumps(update(config, ws, address="auto", on_progress=lambda p: tell(json.dumps(p))).to_dict()))
        return
    with until_stopped() as stop:
        repeat(lambda: update(config, ws, address="auto").to_dict(), args.every, stop, tell)


if __name__ == "__main__":
    main()
