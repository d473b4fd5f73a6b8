r"""Fit an encoder on the cluster this job was submitted to, with Ray Train.

    ray job submit --working-dir . -- \
        python jobs/fit_encoder.py text --workspace s3://shop/ws --config jobs/configs/fit_text.yaml

The last line is the summary as JSON. A job that died continues when it is repeated.
"""

import argparse
import json
from typing import Any

from rayrec.config import FitImagesConfig, FitTextConfig, TrimConfig
from rayrec.pipelines.fit_images import fit_images
from rayrec.pipelines.fit_text import fit_text
from rayrec.pipelines.fit_trimmed import fit_trimmed
from rayrec.workspace import Workspace

KINDS: dict[str, Any] = {
    "text": (FitTextConfig, fit_text),
    "images": (FitImagesConfig, fit_images),
    "trimmed": (TrimConfig, fit_trimmed),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=list(KINDS))
    parser.add_argument("--workspace", required=True, help="directory or URI that every node reaches")
    parser.add_argument("--config", help="YAML, see jobs/configs/fit_text.yaml and fit_images.yaml")
    args = parser.parse_args()
    kind, run = KINDS[args.what]
    ws = Workspace.open(args.workspace, create=False)
    summary = run(kind.load(args.config), ws, address="auto", on_progress=lambda p: print(json.dumps(p), flush=True))
    print(json.dumps(summary.to_dict()))


if __name__ == "__main__":
    main()
