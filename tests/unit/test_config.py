"""A config says what is wrong with it, by key."""

from pathlib import Path

import pytest

from rayrec.config import (
    Config,
    EmbedConfig,
    FitImagesConfig,
    FitRankingConfig,
    FitTextConfig,
    FusionWeights,
    IndexConfig,
    SourceConfig,
    TrainConfig,
    TrimConfig,
    UpdateConfig,
)
from rayrec.errors import NotFound, SchemaError

ROOT = Path(__file__).parents[2]


def file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    return path


def test_a_file_sets_what_it_names_and_leaves_the_rest(tmp_path: Path) -> None:
    config = EmbedConfig.load(file(tmp_path, "source: {path: items.csv, columns: {item_id: sku}}\nworkers: 2\n"))
    assert config.source == SourceConfig(path="items.csv", columns={"item_id": "sku"})
    assert (config.workers, config.block_rows) == (2, EmbedConfig().block_rows)


def test_without_a_file_or_with_an_empty_one_all_is_default(tmp_path: Path) -> None:
    assert EmbedConfig.load(None) == EmbedConfig.load(file(tmp_path, "# nothing yet\n")) == EmbedConfig()


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    config = EmbedConfig.load(file(tmp_path, "workers: 2\nblock_rows: 8\n"), {"workers": 3})
    assert (config.workers, config.block_rows) == (3, 8)


def test_every_key_at_fault_is_named_with_its_file(tmp_path: Path) -> None:
    path = file(tmp_path, "source: {path: x, formt: csv}\nworkers: 0\n")
    with pytest.raises(SchemaError, match=r"job\.yaml: source\.formt: Extra .* not permitted; workers: .* 1") as caught:
        EmbedConfig.load(path)
    assert "\n" not in str(caught.value)


def test_an_unknown_override_is_refused() -> None:
    with pytest.raises(SchemaError, match="EmbedConfig: wrokers: Extra inputs"):
        EmbedConfig.load(None, {"wrokers": 1})


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"config file .*gone\.yaml does not exist"):
        EmbedConfig.load(tmp_path / "gone.yaml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1", "is not YAML"),
        ("- a\n- b", "expected a mapping, got list"),
        ("[]", "expected a mapping, got list"),
        ("42", "got int"),
        ("1: 2", "1: Keys should be strings"),
    ],
)
def test_a_file_that_is_no_mapping_is_one_line_that_names_it(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match=rf"job\.yaml.*{said}") as caught:
        EmbedConfig.load(file(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_directory_or_a_binary_file_is_no_config(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="cannot be read: Is a directory"):
        EmbedConfig.load(tmp_path)
    (tmp_path / "a.bin").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SchemaError, match=r"a\.bin is not YAML"):
        EmbedConfig.load(tmp_path / "a.bin")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("embed", EmbedConfig),
        ("index", IndexConfig),
        ("fit_text", FitTextConfig),
        ("fit_images", FitImagesConfig),
        ("fit_trimmed", TrimConfig),
        ("fit_ranking", FitRankingConfig),
        ("train", TrainConfig),
        ("update", UpdateConfig),
    ],
)
def test_the_example_configs_load_and_name_every_key(name: str, kind: type[Config]) -> None:
    config = kind.load(ROOT / "jobs" / "configs" / f"{name}.yaml")
    assert config.model_fields_set == kind.model_fields.keys()


def test_a_config_survives_being_saved_as_json() -> None:
    config = IndexConfig(events=SourceConfig(path="e.csv"), shards=2)
    assert IndexConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize("weights", [{"dense": -0.1}, {"dense": 1.1}, {"k": 0}])
def test_weights_out_of_range_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(weights))):
        FusionWeights(**weights)
