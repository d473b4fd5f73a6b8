r"""Train the fusion model on the cluster this job was submitted to, with Ray Train; promote it through the gate.

    ray job submit --working-dir . -- \
        python jobs/train_fusion.py --workspace s3://shop/ws --config jobs/configs/train.yaml

The last line is the summary as JSON. A job that died continues from its last epoch when it is repeated.
"""

import argparse
import json

from rayrec.config import TrainConfig
from rayrec.pipelines.train import train
from rayrec.workspace import Workspace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", required=True, help="directory or URI that every node reaches")
    parser.add_argument("--config", help="YAML, see jobs/configs/train.yaml")
    args = parser.parse_args()
    ws = Workspace.open(args.workspace, create=False)
    config = TrainConfig.load(args.config)
    summary = train(config, ws, address="auto", on_progress=lambda told: print(json.dumps(told), flush=True))
    print(json.dumps(summary.to_dict()))


if __name__ == "__main__":
    main()
