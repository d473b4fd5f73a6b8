import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayrec.encoders.base import EncoderId, by_length


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(0, 50)), batch_size=st.integers(1, 9))
def test_batches_cover_every_index_once_in_order_of_length(lengths, batch_size):
    batches = [batch.tolist() for batch in by_length(lengths, batch_size)]
    assert [i for batch in batches for i in batch] == sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert all(1 <= len(batch) <= batch_size for batch in batches)


@pytest.mark.parametrize(
    "encoder_id", [EncoderId("minilm-0a1b", "onnx-fp32"), EncoderId("bge.small-9", "torch-bf16"), EncoderId("x", "")]
)
def test_an_encoder_id_survives_being_written(encoder_id):
    assert EncoderId.parse(str(encoder_id)) == encoder_id
