r"""Build an index version on the cluster this job was submitted to, and promote it.

    ray job submit --working-dir . -- \
        python jobs/build_index.py --workspace s3://shop/ws --config jobs/configs/index.yaml

The last line is the summary as JSON.
"""

import argparse
import json

from rayrec.config import IndexConfig
from rayrec.pipelines.index import index
from rayrec.workspace import Workspace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", required=True, help="directory or URI that every node reaches")
    parser.add_argument("--config", help="YAML, see jobs/configs/index.yaml")
    args = parser.parse_args()
    summary = index(IndexConfig.load(args.config), Workspace.open(args.workspace, create=False), address="auto")
    print(json.dumps(summary.to_dict()))


if __name__ == "__main__":
    main()
