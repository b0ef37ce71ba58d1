"""An exported folder: what its base folder said is kept, other readers find their fields, and it computes the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn

from modlib.data.text.boundary_tokens import BoundaryToken, BoundaryTokens
from modlib.data.tokenizers.from_files import load_tokenizer
from modlib.models import export_check
from modlib.models.base_weights import over_base
from modlib.models.exported_tokenizer import DataTokenizer
from modlib.models.gpt2 import GPT2
from modlib.models.huggingface import HuggingFacePretrainedModel
from modlib.models.huggingface_export import export_huggingface
from modlib.models.lora import LoRAModel
from modlib.runtime.errors import CheckpointError, ConfigError

transformers = pytest.importorskip("transformers")

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
SCALED = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip


def trained_tokenizer(normalizer: Any = None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    special = ["<s>", "<|im_end|>", "<pad>", "<|im_start|>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["hello world user assistant"] * 3, trainer)
    return tokenizer


def make_base(folder: Path) -> Path:
    """A chat model as save_pretrained of version 5 writes it: bfloat16, scaled rotary positions, files beside it."""
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=trained_tokenizer(),
        bos_token="<s>",
        eos_token="<|im_end|>",
        pad_token="<pad>",
        padding_side="left",
        additional_special_tokens=["<|im_start|>"],
        model_max_length=777,
        chat_template=TEMPLATE,
    )
    tokenizer.save_pretrained(folder)
    config = transformers.LlamaConfig(
        vocab_size=288, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, bos_token_id=0, eos_token_id=[1, 4], pad_token_id=2,
        rope_parameters=SCALED, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    model.generation_config.temperature, model.generation_config.do_sample = 0.6, True
    model.save_pretrained(folder)
    for name in ("README.md", "LICENSE", "preprocessor_config.json"):
        (folder / name).write_text(name)
    (folder / "onnx").mkdir()
    (folder / "pytorch_model.bin").write_text("the same weights in another format")
    (folder / "secret.txt").symlink_to(folder.parent / "elsewhere")
    (folder.parent / "elsewhere").write_text("not of this folder")
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("hub") / "base")


def data_tokenizer(folder: Path, template: str | None = None) -> DataTokenizer:
    loaded = load_tokenizer(folder)
    end = BoundaryToken(4, "</s>")
    return DataTokenizer(
        (folder / "tokenizer.json").read_text(), loaded.fingerprint, BoundaryTokens(end, end), template
    )


def read_config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def test_an_untrained_base_comes_back_as_it_was(base: Path, tmp_path: Path) -> None:
    export_huggingface(HuggingFacePretrainedModel(path=str(base)), tmp_path / "out", data_tokenizer(base))
    out = tmp_path / "out"
    beside = {path.name for path in base.iterdir()} - {"onnx", "pytorch_model.bin", "secret.txt"}
    assert {path.name for path in out.iterdir()} == beside
    for name in beside - {"config.json", "tokenizer_config.json"}:  # model.safetensors too: bfloat16, the same bits
        assert (out / name).read_bytes() == (base / name).read_bytes(), name
    ours, theirs = (transformers.AutoTokenizer.from_pretrained(place) for place in (out, base))
    for setting in (
        "bos_token_id", "eos_token_id", "pad_token_id", "padding_side", "model_max_length", "all_special_tokens",
        "chat_template", "model_input_names", "clean_up_tokenization_spaces", "truncation_side",
    ):  # fmt: skip
        assert getattr(ours, setting) == getattr(theirs, setting), setting
    talk = [{"role": "user", "content": "hello"}]
    assert ours.apply_chat_template(talk, tokenize=False) == theirs.apply_chat_template(talk, tokenize=False)
    config, before = read_config(out), read_config(base)
    assert {name: value for name, value in config.items() if name in before} == before


def test_readers_of_version_4_find_their_fields(base: Path, tmp_path: Path) -> None:
    export_huggingface(HuggingFacePretrainedModel(path=str(base)), tmp_path / "scaled")
    config = read_config(tmp_path / "scaled")
    assert config["rope_theta"] == 5e5
    assert config["rope_scaling"] == {name: value for name, value in SCALED.items() if name != "rope_theta"}
    assert config["rope_parameters"] == SCALED
    assert (config["dtype"], config["torch_dtype"]) == ("bfloat16", "bfloat16")
    told = json.loads((tmp_path / "scaled" / "tokenizer_config.json").read_text())
    assert told["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert told["additional_special_tokens"] == ["<|im_start|>"]
    assert "extra_special_tokens" not in told

    own = GPT2(
        vocab_size=288, seq_len=32, num_layers=1, num_heads=4, dim=32, position="rotary", norm=nn.RMSNorm,
        activation="swiglu", bias=False, rope_theta=5e5,
    )  # fmt: skip
    export_huggingface(own, tmp_path / "own", data_tokenizer(base))
    config = read_config(tmp_path / "own")
    assert (config["rope_theta"], config["rope_scaling"], config["torch_dtype"]) == (5e5, None, "float32")
    assert (config["bos_token_id"], config["eos_token_id"]) == (4, 4)
    told = json.loads((tmp_path / "own" / "tokenizer_config.json").read_text())
    assert (told["tokenizer_class"], told["eos_token"]) == ("PreTrainedTokenizerFast", "</s>")


def test_the_dtype_is_the_bases_or_the_one_that_is_named(base: Path, tmp_path: Path) -> None:
    model = HuggingFacePretrainedModel(path=str(base))
    for dtype in ("float32", "float16"):
        export_huggingface(model, tmp_path / dtype, dtype=dtype)
        tensors = load_file(tmp_path / dtype / "model.safetensors")
        assert {tensor.dtype for tensor in tensors.values()} == {getattr(torch, dtype)}
        assert read_config(tmp_path / dtype)["dtype"] == dtype
    with pytest.raises(ConfigError, match=r"^--dtype \(int8\) must be one of float32, bfloat16, float16$"):
        export_huggingface(model, tmp_path / "int8", dtype="int8")


def test_overrides_are_in_the_config(base: Path, tmp_path: Path) -> None:
    overrides = {"attention_dropout": 0.25, "max_position_embeddings": 64, "rope_parameters": {**SCALED, "factor": 2.0}}
    model = HuggingFacePretrainedModel(path=str(base), overrides=overrides)
    export_huggingface(model, tmp_path / "out")
    config = read_config(tmp_path / "out")
    assert (config["attention_dropout"], config["max_position_embeddings"]) == (0.25, 64)
    assert (config["rope_parameters"]["factor"], config["rope_scaling"]["factor"]) == (2.0, 2.0)
    assert config["eos_token_id"] == [1, 4]


def test_the_template_that_the_data_was_packed_with(base: Path, tmp_path: Path, caplog: Any) -> None:
    model, other = HuggingFacePretrainedModel(path=str(base)), "{{ messages[0].content }}\n"
    export_huggingface(model, tmp_path / "same", data_tokenizer(base, TEMPLATE))
    assert (tmp_path / "same" / "chat_template.jinja").read_text() == TEMPLATE
    assert "chat template" not in caplog.text
    export_huggingface(model, tmp_path / "out", data_tokenizer(base, other))
    assert "the chat template is the one that the training data was packed with" in caplog.text
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template == other
    assert tokenizer.eos_token == "<|im_end|>"


def test_data_of_another_tokenizer_than_the_bases(base: Path, tmp_path: Path, caplog: Any) -> None:
    (tmp_path / "tokenizer.json").write_text(trained_tokenizer(normalizers.Lowercase()).to_str())
    model = HuggingFacePretrainedModel(path=str(base))
    export_huggingface(model, tmp_path / "out", data_tokenizer(tmp_path, TEMPLATE))
    assert "the tokenizer of the training data is another one than that of" in caplog.text
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("HELLO")["input_ids"] == tokenizer("hello")["input_ids"]
    assert (tokenizer.eos_token_id, tokenizer.chat_template) == (4, TEMPLATE)
    assert (tmp_path / "out" / "README.md").is_file()
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert (generation["eos_token_id"], generation["temperature"]) == (4, 0.6)
    assert read_config(tmp_path / "out")["eos_token_id"] == 4


def test_an_end_token_that_the_normalizer_would_change(tmp_path: Path) -> None:
    tokenizer = trained_tokenizer(normalizers.Lowercase())
    tokenizer.add_special_tokens([AddedToken("<EOD>", special=True, normalized=True)])
    end_id = tokenizer.token_to_id("<EOD>") or tokenizer.get_vocab_size() - 1
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_str())
    end = BoundaryToken(end_id, load_tokenizer(tmp_path).token_text(end_id))
    told = DataTokenizer(tokenizer.to_str(), "of the data", BoundaryTokens(end, end))
    model = GPT2(vocab_size=end_id + 1, seq_len=32, num_layers=1, num_heads=4, dim=32)
    export_huggingface(model, tmp_path / "out", told)
    read = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (read.eos_token, read.eos_token_id, len(read)) == ("<EOD>", end_id, end_id + 1)
    assert read_config(tmp_path / "out")["eos_token_id"] == end_id
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == end_id


class Bigram(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vocab_size, self.seq_len = 288, 16
        self.table = nn.Embedding(288, 8)
        self.head = nn.Linear(8, 288, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.table(tokens))


def test_a_model_of_ones_own_gets_its_state(base: Path, tmp_path: Path) -> None:
    model = Bigram()
    export_huggingface(model, tmp_path / "out", data_tokenizer(base))
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert list(tensors) == ["table.weight"]
    assert torch.equal(tensors["table.weight"], model.table.weight)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "model.safetensors", "tokenizer.json", "tokenizer_config.json"
    }  # fmt: skip
    odd = GPT2(vocab_size=80, seq_len=32, num_layers=1, num_heads=4, dim=32, position="none")
    with pytest.raises(ConfigError, match=r"; modlib export --plain writes its weights alone$"):
        export_huggingface(odd, tmp_path / "odd")
    export_huggingface(odd, tmp_path / "odd", plain=True, dtype="bfloat16")
    tensors = load_file(tmp_path / "odd" / "model.safetensors")
    assert set(tensors) == set(odd.state_dict())
    assert tensors["token_embedding.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize("whole_bytes", [export_check.WHOLE_BYTES, 0])
def test_what_computes_something_else_gets_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole_bytes: int
) -> None:
    """A part of the right class that was told to compute something else; for a large model a small one tells it."""
    monkeypatch.setattr(export_check, "WHOLE_BYTES", whole_bytes)
    model = GPT2(vocab_size=80, seq_len=32, num_layers=2, num_heads=4, dim=32)
    export_huggingface(model, tmp_path / "right")
    forward = GPT2.forward
    monkeypatch.setattr(GPT2, "forward", lambda self, *a, **k: 1.001 * forward(self, *a, **k))
    with pytest.raises(ConfigError) as caught:
        export_huggingface(model, tmp_path / "out")
    assert "logits of the exported model must be the run's, of up to " in str(caught.value)
    assert "GPT2 computes something that transformers' GPT2LMHeadModel does not" in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"right"}


def test_a_network_that_was_changed_is_named(tmp_path: Path) -> None:
    class MyNorm(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    model = HuggingFacePretrainedModel(config={"model_type": "llama", **TINY})
    model.network.model.layers[0].input_layernorm.variance_epsilon = 0.5
    model.network.model.layers[1].mlp.act_fn = MyNorm()
    with pytest.raises(ConfigError) as caught:
        export_huggingface(model, tmp_path / "out")
    assert str(caught.value).splitlines() == [
        "model.layers.0.input_layernorm.variance_epsilon (0.5) must be 1e-06, as the config says",
        "model.layers.1.mlp.act_fn (MyNorm) must be exactly SiLUActivation, as the config says",
    ]


TINY = {
    "vocab_size": 80, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 32, "head_dim": 8,
}  # fmt: skip


def test_adapters_that_cannot_be_merged(tmp_path: Path) -> None:
    model = LoRAModel(
        lambda: GPT2(vocab_size=80, seq_len=32, num_layers=1, num_heads=4, dim=32),
        r=2, alpha=2, targets=["token_embedding"],
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"^token_embedding.weight is adapted and tied to the output projection"):
        export_huggingface(model, tmp_path / "out")


@pytest.mark.parametrize("kind", ["mixtral", "gpt_neox", "gemma3_text"])
def test_architectures_that_are_stored_otherwise(kind: str, tmp_path: Path) -> None:
    """Fused experts become those of the hub, layer by layer; thetas get the names that version 4 has for them."""
    more: dict[str, Any] = {
        "mixtral": {"num_local_experts": 4},
        "gpt_neox": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    }.get(kind, {})
    config = {name: value for name, value in TINY.items() if kind == "gemma3_text" or name != "head_dim"}
    if kind == "gpt_neox":
        del config["num_key_value_heads"]
    model = HuggingFacePretrainedModel(config={"model_type": kind, **config, **more})
    export_huggingface(model, tmp_path / "ours")
    model.network.save_pretrained(tmp_path / "theirs")
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "theirs"))
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    fields = read_config(tmp_path / "ours")
    if kind == "mixtral":
        assert "model.layers.0.block_sparse_moe.experts.3.w2.weight" in ours
    if kind == "gpt_neox":
        assert (fields["rotary_pct"], fields["rotary_emb_base"]) == (0.5, 10000.0)
    if kind == "gemma3_text":
        assert (fields["rope_theta"], fields["rope_local_base_freq"]) == (1e6, 1e4)


def test_a_network_of_other_sizes_than_its_config(tmp_path: Path) -> None:
    model = HuggingFacePretrainedModel(config={"model_type": "llama", **TINY})
    model.network.lm_head = nn.Linear(32, 81, bias=False)
    text = r"weight lm_head.weight of LlamaForCausalLM must be \(80, 32\); the run's model has \(81, 32\)$"
    with pytest.raises(ConfigError, match=text):
        export_huggingface(model, tmp_path / "out")


class MyModel(HuggingFacePretrainedModel):
    pass


def test_a_class_over_a_network_may_compute_anything(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"^model \(MyModel\) must be exactly HuggingFacePretrainedModel to be written for transformers; modlib",
    ):
        export_huggingface(MyModel(config={"model_type": "llama", **TINY}), tmp_path / "out")


def test_an_end_token_whose_text_is_read_as_another_id(base: Path, tmp_path: Path) -> None:
    end = BoundaryToken(7, "</s>")
    told = DataTokenizer((base / "tokenizer.json").read_text(), "of the data", BoundaryTokens(end, end))
    with pytest.raises(ConfigError) as caught:
        export_huggingface(Bigram(), tmp_path / "out", told)
    assert str(caught.value) == (
        "eos_token of the exported tokenizer (id 4) must be '</s>' of the training data (id 7); transformers reads its "
        "text as another token: rename the token in tokenizer.json"
    )


class Trained:
    """What a checkpoint of adapters alone gives."""

    def __init__(self, model: nn.Module) -> None:
        self.state = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}

    def __contains__(self, name: str) -> bool:
        return name in self.state

    def read(self, name: str, rows: slice = slice(None)) -> Tensor:
        return self.state[name].detach()[rows]

    def spans(self, _: str) -> None:
        return None

    def finish(self) -> None:
        pass


def test_frozen_weights_are_read_from_the_base(base: Path, tmp_path: Path) -> None:
    def adapted(folder: Path) -> nn.Module:
        return LoRAModel(lambda: HuggingFacePretrainedModel(path=str(folder)), r=2, alpha=2, targets=["q_proj"])

    trained = adapted(base)
    with torch.no_grad():
        trained.network.model.layers[0].self_attn.q_proj.lora_B.fill_(0.5)  # type: ignore[union-attr]
    export_huggingface(trained, tmp_path / "in memory")
    with torch.device("meta"):
        model = adapted(base)
    with over_base(model, Trained(trained)) as weights:
        assert weights is not None
        assert weights.read("network.lm_head.weight", slice(1, 3)).shape == (2, 32)
        export_huggingface(model, tmp_path / "streamed", weights=weights)
    streamed, whole = (tmp_path / name / "model.safetensors" for name in ("streamed", "in memory"))
    assert streamed.read_bytes() == whole.read_bytes() != (base / "model.safetensors").read_bytes()

    broken = Path(shutil.copytree(base, tmp_path / "broken", ignore=shutil.ignore_patterns("secret.txt")))
    with torch.device("meta"):
        model = adapted(broken)
    (broken / "model.safetensors").write_bytes(b"short")
    with (
        pytest.raises(CheckpointError, match=f"^weights in {broken} cannot be read: "),
        over_base(model, Trained(model)),
    ):
        pass
    with torch.device("meta"):
        plain = LoRAModel(lambda: GPT2(vocab_size=80, seq_len=32, num_layers=1, num_heads=4, dim=32),
                          r=2, alpha=2, targets=["attention.qkv"])  # fmt: skip
    with over_base(plain, Trained(plain)) as weights:
        assert weights is None
