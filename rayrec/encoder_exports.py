"""The query encoder of a workspace: exported once, kept under encoders/, opened by space."""

import logging
import tempfile
from pathlib import Path

from rayrec.config import EncoderConfig
from rayrec.encoders import onnx
from rayrec.encoders.text import TextModel
from rayrec.errors import IncompatibleArtifact, NotFound
from rayrec.workspace import Workspace

log = logging.getLogger(__name__)


def find(ws: Workspace, space: str) -> str | None:
    """An intact export of an embedding space; None without one."""
    prefix = f"{space}.{onnx.VARIANT}"
    for version in reversed([v for v in ws.versions("encoders") if v.startswith(prefix)]):
        try:
            ws.verify("encoders", version)
            return version
        except IncompatibleArtifact as error:
            log.warning("%s; exporting again", error)
    return None


def ensure(ws: Workspace, config: EncoderConfig) -> str:
    """The export of a text model in this workspace, made now if it is missing (about 15 s). Its version."""
    model = TextModel.read(config.model, max_tokens=config.max_tokens)
    version = find(ws, model.space)
    if version is not None:
        return version
    with (
        tempfile.TemporaryDirectory(prefix="rayrec-export-") as local,
        ws.stage("encoders", name=f"{model.space}.{onnx.VARIANT}") as staged,
    ):
        onnx.export(config.model, config.max_tokens, Path(local))
        staged.upload(Path(local), "")
        return staged.publish({"encoder": {"space": model.space, "id": f"{model.space}.{onnx.VARIANT}"}})


def open_for(ws: Workspace, space: str, *, threads: int = 1) -> onnx.OnnxTextEncoder:
    """The encoder of an index's space. Raises NotFound if the workspace has no export of it."""
    version = find(ws, space)
    if version is None:
        raise NotFound(f"no encoder of space {space} in this workspace; run 'rayrec embed' with its model")
    return onnx.OnnxTextEncoder(ws.local_copy("encoders", version), threads=threads)
