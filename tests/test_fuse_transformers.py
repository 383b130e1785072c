"""fuse_ of transformers' models: what is fused, and that their logits, losses, gradients and texts stay."""

import collections
import copy
import functools
import inspect
import io
import subprocess
import sys
import threading

import pytest
import rusttorch
import torch
import transformers
from cases import INTEL, same_error
from rusttorch.fusion import Fusion
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    EsmConfig,
    EsmForMaskedLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LongT5Config,
    LongT5ForConditionalGeneration,
    M2M100Config,
    M2M100ForConditionalGeneration,
    MistralConfig,
    MistralForCausalLM,
    MobileBertConfig,
    MobileBertForMaskedLM,
    MPNetConfig,
    MPNetForMaskedLM,
    MT5Config,
    MT5ForConditionalGeneration,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
    RoFormerConfig,
    RoFormerForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
    UMT5Config,
    UMT5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

transformers.logging.set_verbosity_error()

WORDS, LAYERS = 61, 2
SIZES = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HEADS = SIZES | {"num_key_value_heads": 2, "head_dim": 8}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
GPT2 = {
    **{"vocab_size": WORDS, "n_embd": 32, "n_layer": LAYERS, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2},
    **{"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
}
T5 = {
    **{"vocab_size": WORDS, "d_model": 32, "d_kv": 8, "d_ff": 40, "num_layers": LAYERS, "num_heads": 4},
    **{"dropout_rate": 0.0, "decoder_start_token_id": 0},
}
WHISPER = {
    **{"vocab_size": WORDS, "d_model": 32, "encoder_layers": LAYERS, "decoder_layers": LAYERS, "num_mel_bins": 8},
    **{"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 40, "decoder_ffn_dim": 40},
    **{"max_source_positions": 20, "max_target_positions": 32, "pad_token_id": 0, "bos_token_id": 1},
    **{"eos_token_id": 2, "decoder_start_token_id": 1, "suppress_tokens": None, "begin_suppress_tokens": None},
}
GATED = {"rms_norm": 2 * LAYERS + 1, "rope": LAYERS, "gated": LAYERS, "linear_cross_entropy": 1}
GEMMA = {"rms_norm.offset": 2 * LAYERS + 1, "rope": LAYERS, "gated": LAYERS, "linear_cross_entropy": 1}
# The model, and how many of its layers are fused, and how.
MODELS = {
    "GPT-2": (GPT2LMHeadModel, GPT2Config(**GPT2), {"gelu": LAYERS, "linear_cross_entropy": 1}),
    "Llama": (LlamaForCausalLM, LlamaConfig(**HEADS), GATED),
    "Mistral": (MistralForCausalLM, MistralConfig(**HEADS, sliding_window=8), GATED),
    "Qwen2": (Qwen2ForCausalLM, Qwen2Config(**HEADS), GATED),
    "Qwen3": (Qwen3ForCausalLM, Qwen3Config(**HEADS), GATED | {"rms_norm": 4 * LAYERS + 1}),
    "Phi-3": (
        Phi3ForCausalLM,
        Phi3Config(**HEADS),
        {"rms_norm": 2 * LAYERS + 1, "rope": LAYERS, "gated, packed": LAYERS, "linear_cross_entropy": 1},
    ),
    "Gemma": (GemmaForCausalLM, GemmaConfig(**HEADS), GEMMA),
    "Gemma 2": (
        Gemma2ForCausalLM,
        Gemma2Config(**HEADS, final_logit_softcapping=3.0, sliding_window=8),
        GEMMA | {"rms_norm.offset": 4 * LAYERS + 1},
    ),
    "Gemma 3": (
        Gemma3ForCausalLM,
        Gemma3TextConfig(**HEADS, sliding_window=8),
        GEMMA | {"rms_norm.offset": 6 * LAYERS + 1},
    ),
    "BERT": (
        BertForMaskedLM,
        BertConfig(**SIZES, **NO_DROPOUT),
        {"add_layer_norm": 2 * LAYERS, "linear_cross_entropy": 1},
    ),
    "BERT, causal": (
        BertLMHeadModel,
        BertConfig(**SIZES, **NO_DROPOUT, is_decoder=True),
        {"add_layer_norm": 2 * LAYERS, "linear_cross_entropy": 1},
    ),
    "RoBERTa": (
        RobertaForMaskedLM,
        RobertaConfig(**SIZES, **NO_DROPOUT),
        {"add_layer_norm": 2 * LAYERS, "linear_cross_entropy": 1},
    ),
    "ViT": (ViTForImageClassification, ViTConfig(**SIZES | NO_DROPOUT, image_size=16, patch_size=4), {}),
    "T5": (
        T5ForConditionalGeneration,
        T5Config(**T5),
        {"rms_norm": 5 * LAYERS + 2, "linear_cross_entropy": 1},
    ),
    "T5 1.1": (
        T5ForConditionalGeneration,
        T5Config(**T5, feed_forward_proj="gated-gelu"),
        {"rms_norm": 5 * LAYERS + 2, "gated": 2 * LAYERS, "gelu": 2 * LAYERS, "linear_cross_entropy": 1},
    ),
    "Whisper": (WhisperForConditionalGeneration, WhisperConfig(**WHISPER, dropout=0.0), {"linear_cross_entropy": 1}),
}
WRITERS = [
    name
    for name, (kind, *_) in MODELS.items()
    if hasattr(kind, "generate") and "BERT" not in name and name != "RoBERTa"
]
LANGUAGE = [name for name, (*_, fused) in MODELS.items() if "linear_cross_entropy" in fused]


def model(name, dtype=torch.float32):
    torch.manual_seed(0)
    kind, config, _ = MODELS[name]
    m = kind(copy.deepcopy(config))
    with torch.no_grad():
        for p in m.parameters():  # norms' weights and biases are all 1 and 0
            p.add_(torch.randn_like(p), alpha=0.05)
    return m.to(dtype).train()


def tokens(*sizes, seed=1):
    return torch.randint(3, WORDS, sizes, generator=torch.Generator().manual_seed(seed))


def batch(m):
    generator = torch.Generator().manual_seed(2)
    dtype = m.dtype
    if isinstance(m, ViTForImageClassification):
        return {
            "pixel_values": torch.randn(2, 3, 16, 16, generator=generator).to(dtype),
            "labels": torch.tensor([0, 1]),
        }
    labels = tokens(2, 12, seed=3)
    labels[0, 3:6] = -100
    if isinstance(m, WhisperForConditionalGeneration):
        return {"input_features": torch.randn(2, 8, 40, generator=generator).to(dtype), "labels": labels}
    return {"input_ids": tokens(2, 12), "labels": labels}


def gradients(m, **options):
    m.zero_grad(set_to_none=True)
    loss = m(**batch(m), **options).loss
    loss.backward()
    return [loss.detach(), *(p.grad for p in m.parameters() if p.grad is not None)]


def hows(fusions):
    return dict(collections.Counter(f.how for f in fusions if f.fused))


def as_right(ours, stock, exact, slack=4):
    """At most twice as wrong as stock anywhere in a tensor, or by some roundings of the largest gradient of all."""
    eps = max(torch.finfo(t.dtype).eps for t in stock)
    largest = max(t.abs().max() for t in exact)
    assert len(ours) == len(stock) == len(exact)
    for our, their, right in zip(ours, stock, exact, strict=True):
        assert our.dtype == their.dtype and our.shape == their.shape
        error, theirs = ((t.double() - right).abs().max() for t in (our, their))
        assert error <= 2 * theirs + slack * eps * largest


@pytest.mark.parametrize("name", MODELS)
def test_models(name):
    exact, m = gradients(model(name, torch.float64)), model(name)
    state = {key: value.clone() for key, value in m.state_dict().items()}
    stock, (logits, right) = gradients(m), (f.eval()(**batch(f)).logits for f in (m, model(name, torch.float64)))
    m.train()
    fusions = rusttorch.fuse_(m)
    assert hows(fusions) == MODELS[name][2]
    assert rusttorch.fuse_(m) == fusions
    as_right(gradients(m), stock, exact)
    as_right([m.eval()(**batch(m)).logits], [logits], [right])
    assert m.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in m.state_dict().items())
    rusttorch.unfuse_(m.train())
    assert not any("forward" in vars(module) for module in m.modules())
    assert all(map(torch.equal, gradients(m), stock))


@pytest.mark.parametrize("name", [n for n in LANGUAGE if n in ("GPT-2", "Llama", "Qwen3", "Gemma 2", "BERT")])
def test_autocast(name):
    def run(m, enabled=True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            return gradients(m)

    exact, m = run(model(name, torch.float64), False), model(name)
    stock = run(m)
    rusttorch.fuse_(m)
    ours = run(m)
    assert ours[0].dtype == torch.float32
    for our, their, right in zip(ours, stock, exact, strict=True):
        assert our.dtype == their.dtype
        error, theirs = ((t.double() - right).norm() for t in (our, their))
        assert error <= 2 * theirs + 2**-8 * right.norm() + 1e-4


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("name", ("GPT-2", "Llama", "Gemma 2", "BERT", "T5 1.1"))
def test_16_bits(name, dtype):
    m = model(name, dtype)
    stock = m.eval()(**batch(m)).logits
    rusttorch.fuse_(m)
    exact = model(name, torch.float64).eval()
    exact.load_state_dict(m.state_dict())
    as_right([m(**batch(m)).logits], [stock], [exact(**batch(exact)).logits])


@pytest.mark.parametrize("name", WRITERS)
def test_generation(name):
    m = model(name).eval()
    inputs = batch(m)
    inputs.pop("labels")
    options = {"max_new_tokens": 10, "min_new_tokens": 10, "do_sample": False}
    stock = m.generate(**inputs, **options)
    rusttorch.fuse_(m)
    with rusttorch.use():
        assert torch.equal(m.generate(**inputs, **options), stock)


def test_generation_of_padded_texts():
    """Without a mask, which generate makes of the padding where it sees that the model takes one."""
    m, x = model("Llama").eval(), tokens(2, 8)
    x[0, :4] = 0
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    stock, takes = m.generate(x, **options), inspect.signature(m.forward)
    rusttorch.fuse_(m)
    assert torch.equal(m.generate(x, **options), stock)
    assert inspect.signature(m.forward) == takes and m._supports_logits_to_keep()


@pytest.mark.parametrize("name", ("GPT-2", "Llama", "BERT"))
def test_curves(name):
    """Of 60 steps of learning one text by heart, swapped and fused."""

    def losses(fused):
        m = model(name)
        x = tokens(4, 16)
        if fused:
            rusttorch.fuse_(m)
        optimizer = torch.optim.AdamW(m.parameters(), lr=5e-3)
        found = []
        for _ in range(60):
            optimizer.zero_grad()
            loss = m(input_ids=x, labels=x).loss
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        return found

    stock = losses(False)
    with rusttorch.use():
        ours = losses(True)
    assert stock[-1] < 0.2 * stock[0]
    assert all(abs(a - b) <= 2e-3 * max(1, b) for a, b in zip(ours, stock, strict=True))


# The loss


def test_loss_in_training_alone():
    m = model("Llama")
    x = batch(m)
    logits = m(**x).logits
    rusttorch.fuse_(m)
    assert m(**x).logits is None
    for again in (
        m(input_ids=x["input_ids"]).logits,
        m.eval()(**x).logits,
        m.train()(**x, return_dict=False)[1],
        torch.no_grad()(m)(**x).logits,
    ):
        torch.testing.assert_close(again, logits)
    assert m(input_ids=x["input_ids"], logits_to_keep=3).logits.shape[1] == 3
    assert len(m(**x, output_hidden_states=True).hidden_states) == LAYERS + 1
    assert "linear_cross_entropy" not in hows(rusttorch.fuse_(m, loss=False))
    torch.testing.assert_close(m(**x).logits, logits)


@pytest.mark.parametrize("count", (7, torch.tensor(7)))
@pytest.mark.parametrize("name", ("Llama", "BERT"))  # BERT's does not ask how many
def test_loss_of_several_batches(name, count):
    m = model(name)
    stock = m(**batch(m), num_items_in_batch=count).loss
    rusttorch.fuse_(m)
    ours = m(**batch(m), num_items_in_batch=count)
    torch.testing.assert_close(ours.loss, stock)
    assert ours.logits is None


def test_loss_of_someone_else():
    def mine(logits, labels, vocab_size, **kwargs):
        return logits.square().mean()

    m = model("Llama")
    rusttorch.fuse_(m)
    shifted = {"shift_labels": tokens(2, 12)}
    stock = model("Llama")
    torch.testing.assert_close(m(**batch(m), **shifted).loss, stock(**batch(m), **shifted).loss)
    m = model("Llama")
    m.loss_function = mine
    left = [f for f in rusttorch.fuse_(m) if f.layers == ("",)]
    assert [f.fused for f in left] == [False] and "not that of a language model" in left[0].how
    assert m(**batch(m)).logits is not None
    for loss in (mine, functools.partial(transformers.loss.loss_utils.ForCausalLMLoss, num_items_in_batch=3)):
        m, stock = model("Llama"), model("Llama")
        rusttorch.fuse_(m)
        m.loss_function = stock.loss_function = loss
        ours, theirs = m(**batch(m)).loss, stock(**batch(m)).loss
        torch.testing.assert_close(ours, theirs)
        assert INTEL or torch.equal(ours, theirs)  # there a product's last bits depend on where its factors lie
        assert "linear_cross_entropy" not in hows(rusttorch.fuse_(m))


SEQ2SEQ = {
    **{"vocab_size": WORDS, "d_model": 32, "encoder_layers": LAYERS, "decoder_layers": LAYERS, "dropout": 0.0},
    **{"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 40, "decoder_ffn_dim": 40},
    **{"encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0},
    **{"pad_token_id": 1, "decoder_start_token_id": 2},
}


@pytest.mark.parametrize(
    "kind, config",
    [
        (MT5ForConditionalGeneration, MT5Config(**T5)),
        (UMT5ForConditionalGeneration, UMT5Config(**T5)),
        (LongT5ForConditionalGeneration, LongT5Config(**T5, local_radius=4, global_block_size=4)),
        (M2M100ForConditionalGeneration, M2M100Config(**SEQ2SEQ, max_position_embeddings=40)),
        (BartForConditionalGeneration, BartConfig(**SEQ2SEQ, max_position_embeddings=40)),
    ],
)
def test_loss_of_encoders_and_decoders(kind, config):
    torch.manual_seed(0)
    m = kind(config).train()
    given = {"decoder_input_ids": tokens(2, 12, seed=5)}
    stock = [gradients(m, **options) for options in ({}, given)]
    found = [f for f in rusttorch.fuse_(m) if f.layers == ("",)]
    assert [f.fused for f in found] == [kind is not BartForConditionalGeneration]  # whose logits have a bias beside
    for theirs, options in zip(stock, ({}, given), strict=True):
        for our, their in zip(gradients(m, **options), theirs, strict=True):
            torch.testing.assert_close(our, their, rtol=1e-4, atol=1e-6)
    m.zero_grad()
    assert (m(**batch(m)).logits is None) == found[0].fused
    assert m(**batch(m), return_dict=False)[1].shape == m.eval()(**batch(m)).logits.shape == (2, 12, WORDS)


@pytest.mark.parametrize(
    "kind, config", ((MPNetForMaskedLM, MPNetConfig), (RoFormerForMaskedLM, RoFormerConfig)), ids=("MPNet", "RoFormer")
)
def test_loss_of_other_masked_models(kind, config):
    torch.manual_seed(0)
    m = kind(config(**SIZES, **NO_DROPOUT)).train()
    stock = gradients(m)
    assert hows(rusttorch.fuse_(m)).get("linear_cross_entropy") == 1
    for our, their in zip(gradients(m), stock, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ("T5", "BERT"))
def test_outputs_with_a_loss(name):
    """A tuple where one is asked for in any way; and the loss in stock's dtype."""
    m, x = model(name), batch(model(name))
    rusttorch.fuse_(m)
    assert m(**x, return_dict=None).logits is None
    assert m(**x, return_dict=0)[1].shape == (2, 12, WORDS)
    m.config.return_dict = False
    assert m(**x)[1].shape == (2, 12, WORDS) and m(**x, return_dict=True).logits is None
    m = m.bfloat16()
    assert m(**x, return_dict=True).loss.dtype == torch.bfloat16
    with torch.autocast("cpu"):
        assert m(**x, return_dict=True).loss.dtype == torch.float32


@pytest.mark.parametrize("name", ("Llama", "T5"))
def test_calls_within_a_call(name):
    """Of the same model, with and without labels: the inner one has its own loss, or its logits."""
    m, x, seen = model(name), batch(model(name)), []
    stock = gradients(m)
    rusttorch.fuse_(m)

    def again(*_):
        hook.remove()
        without = {"input_ids": x["input_ids"]} | ({"decoder_input_ids": x["input_ids"]} if name == "T5" else {})
        seen.extend((m(**x).loss.detach(), m(**without).logits.shape))

    hook = (m.encoder if name == "T5" else m.model.embed_tokens).register_forward_hook(again)
    ours = gradients(m)
    assert seen[1] == (2, 12, WORDS)
    for our, their in zip((seen[0], *ours), (stock[0], *stock), strict=True):
        torch.testing.assert_close(our, their, rtol=1e-4, atol=1e-6)


def test_a_call_that_fails():
    """Its head makes logits again."""
    m, x = model("T5"), batch(model("T5"))
    rusttorch.fuse_(m)
    with pytest.raises(ValueError, match="batch_size"):
        m(**x | {"labels": tokens(2, 40), "decoder_input_ids": tokens(2, 12)})
    assert m.lm_head(torch.randn(2, 12, 32)).shape == (2, 12, WORDS)


def test_parts_of_someone_else_around_the_head():
    """Hooks and forwards of BERT's `cls` are given what they would be, put there before and after."""
    halved = model("BERT")
    halved.cls.register_forward_hook(lambda _module, _inputs, output: output / 2)
    stock = gradients(halved)
    assert "its head is not a linear layer alone" in [f.how for f in rusttorch.fuse_(halved)]
    m = model("BERT")
    rusttorch.fuse_(m)
    hook = m.cls.register_forward_hook(lambda _module, _inputs, output: output / 2)
    other = model("BERT")
    rusttorch.fuse_(other)
    other.cls.forward = lambda hidden: type(other.cls).forward(other.cls, hidden) / 2
    for each in (halved, m, other):
        for our, their in zip(gradients(each), stock, strict=True):
            torch.testing.assert_close(our, their)
    hook.remove()
    assert m(**batch(m)).logits is None


@pytest.mark.filterwarnings("ignore:For backward hooks to be called")  # of modules that return no tensors
@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # of modules that are given indices
def test_hooks_of_all_modules():
    """Which are called for the head, too."""
    m, seen = model("T5"), []
    rusttorch.fuse_(m)
    hook = nn.modules.module.register_module_full_backward_hook(lambda module, *_: seen.append(module))
    try:
        output = m(**batch(m))
        output.loss.backward()
    finally:
        hook.remove()
    assert m.lm_head in seen and output.logits is not None
    assert m(**batch(m)).logits is None


def test_cross_entropy_of_someone_else(monkeypatch):
    """In the place of torch's among the globals of the model's module, before and after."""

    class Smoothed(nn.CrossEntropyLoss):
        def __init__(self, **options):
            super().__init__(label_smoothing=0.3, **options)

    m, x = model("T5"), batch(model("T5"))
    rusttorch.fuse_(m)
    module = sys.modules[T5ForConditionalGeneration.__module__]
    monkeypatch.setattr(module, "CrossEntropyLoss", Smoothed)
    other = model("T5")
    stock = other(**x).loss
    assert "linear_cross_entropy" not in hows(rusttorch.fuse_(other))
    for each in (m, other):
        torch.testing.assert_close(each(**x).loss, stock)


def test_forward_of_someone_else(monkeypatch):
    """Of the class, wrapped, or put in its place, before and after."""
    kind, x = T5ForConditionalGeneration, batch(model("T5"))
    own, m = kind.forward, model("T5")
    stock = m(**x).loss
    rusttorch.fuse_(m)

    @functools.wraps(own)
    def wrapped(self, *args, **kwargs):
        return own(self, *args, **kwargs)

    kept = [own]

    @functools.wraps(own)
    def elsewhere(self, *args, **kwargs):  # what it wraps is in no cell of its own
        return kept[0](self, *args, **kwargs)

    plain = lambda self, **kwargs: own(self, **kwargs)  # noqa: E731
    for forward in (wrapped, elsewhere, plain, functools.partialmethod(own)):
        monkeypatch.setattr(kind, "forward", forward)
        other = model("T5")
        rusttorch.fuse_(other)
        for each in (m, other):
            torch.testing.assert_close(each(**x).loss, stock)


@pytest.mark.parametrize("name", ("T5", "Whisper"))
def test_loss_of_wrong_labels(name):
    m, stock = model(name), model(name)
    rusttorch.fuse_(m)
    for labels in (tokens(2, 40), tokens(3, 12)):
        options = batch(m) | {"labels": labels, "decoder_input_ids": tokens(2, 12)}
        same_error(lambda options=options: m(**options), lambda options=options: stock(**options))


def test_loss_as_labels_come():
    """By position, or of another type."""
    m, x = model("Llama"), batch(model("Llama"))
    stock = m(**x).loss
    rusttorch.fuse_(m)
    torch.testing.assert_close(m(x["input_ids"], None, None, None, None, x["labels"]).loss, stock)
    m, x = model("BERT"), {"input_ids": tokens(2, 12), "labels": tokens(2, 12, seed=3).byte()}
    stock = m(**x).loss
    rusttorch.fuse_(m)
    torch.testing.assert_close(m(**x).loss, stock)
    with pytest.raises(RuntimeError, match="to be Long or Byte, but got Int"):
        m(**x | {"labels": x["labels"].int()})


@pytest.mark.parametrize("kind, config", ((EsmForMaskedLM, EsmConfig), (MobileBertForMaskedLM, MobileBertConfig)))
def test_loss_with_a_head_that_gives_no_logits(kind, config):
    """ESM adds a bias to what it gives, MobileBERT takes its weight alone."""
    sizes = {"embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16, "mask_token_id": 3}
    m = kind(config(**SIZES, **NO_DROPOUT, **sizes)).train()
    nn.init.normal_(m.get_output_embeddings().weight)
    stock = gradients(m)
    left = [f for f in rusttorch.fuse_(m) if f.layers == ("",)]
    assert left == [Fusion(("",), False, "what its head gives is not yet its logits")]
    for ours, their in zip(gradients(m), stock, strict=True):
        torch.testing.assert_close(ours, their)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # which dynamo asks for
@pytest.mark.parametrize("name, part", (("Llama", "lm_head"), ("BERT", "cls"), ("Gemma 2", "lm_head")))
def test_loss_with_a_compiled_head(name, part):
    m = model(name)
    stock = gradients(m)
    rusttorch.fuse_(m)
    torch._dynamo.reset()
    m.get_submodule(part).compile(backend="aot_eager")
    for ours, their in zip(gradients(m), stock, strict=True):
        torch.testing.assert_close(ours, their)
    assert m(**batch(m)).logits is not None


def test_loss_with_a_cap_that_is_not_read():
    m, other = model("Llama"), model("Llama")
    rusttorch.fuse_(m)
    m.config.final_logit_softcapping = 0.1
    torch.testing.assert_close(m(**batch(m)).loss, other(**batch(m)).loss)


def test_loss_with_a_head_of_someone_else():
    class Head(nn.Linear):
        pass

    m = model("GPT-2")
    m.lm_head = Head(32, WORDS, bias=False)
    assert "its head is not a linear layer alone" in [f.how for f in rusttorch.fuse_(m)]
    m = model("GPT-2")
    rusttorch.fuse_(m)
    seen = []
    hook = m.lm_head.register_forward_hook(lambda *_: seen.append(1))
    assert m(**batch(m)).logits is not None and seen == [1]
    hook.remove()
    assert m(**batch(m)).logits is None


def test_loss_without_labels_that_count():
    m = model("Llama")
    rusttorch.fuse_(m)
    x = batch(m) | {"labels": torch.full((2, 12), -100)}
    assert m(**x).loss.isnan()
    with pytest.raises(IndexError, match="out of bounds"):
        m(**x | {"labels": torch.full((2, 12), WORDS)})
    with pytest.raises(ValueError, match=r"batch_size \(24\) to match target batch_size \(18\)"):
        m(**x | {"labels": torch.full((2, 9), 5)})


@pytest.mark.parametrize("name", ("Llama", "BERT", "T5", "Whisper"))
def test_no_logits_are_made(name):
    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            output = function(*args, **(kwargs or {}))
            sizes.extend(t.shape for t in tree_leaves(output) if isinstance(t, torch.Tensor))
            return output

    m = model(name)
    rusttorch.fuse_(m)
    for is_fused in (True, False):
        sizes = []
        with Sizes():
            m(**batch(m))
        made = [size for size in sizes if WORDS in size and size.numel() == 2 * 12 * WORDS]
        assert bool(made) != is_fused
        rusttorch.unfuse_(m)


MEMORY = """
import rusttorch, torch
from transformers import LlamaConfig, LlamaForCausalLM
rusttorch.memory.enable_pool()
x = torch.randint(12000, (1, 1024))
sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
m = LlamaForCausalLM(LlamaConfig(vocab_size=12000, **sizes))
rusttorch.fuse_(m)
for _ in range(2):
    m.zero_grad(set_to_none=True)
    before = rusttorch.memory.stats().allocated
    m(input_ids=x, labels=x).loss.backward()
    print(rusttorch.memory.stats().peak_allocated - before)
    rusttorch.unfuse_(m)
"""


def test_memory_of_the_loss():
    """Of 12,000 words at 1,024 places, whose logits take 49 MB: what was most in use, fused, and then (more) not."""
    result = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    fused, stock = map(int, result.stdout.split())
    assert fused < stock / 2 and stock > 2 * 49e6


# What else is done with models


def test_what_is_changed_later():
    class Adapter(nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base = base

        def forward(self, x):
            return 1.5 * self.base(x)

    m, other = model("Llama"), model("Llama")
    rusttorch.fuse_(m)
    for each in (m, other):
        for layer in each.model.layers:
            layer.mlp.gate_proj = Adapter(layer.mlp.gate_proj)
            layer.mlp.act_fn = nn.Tanh()
            layer.input_layernorm.variance_epsilon = 0.5
    as_right(gradients(m), gradients(other), gradients(copy.deepcopy(other).double()))
    m, other, seen = model("Llama"), model("Llama"), []
    rusttorch.fuse_(m)
    for each in (m, other):
        for kind in ("act_fn", "up_proj"):
            getattr(each.model.layers[0].mlp, kind).register_forward_hook(lambda *_, kind=kind: seen.append(kind))
    gradients(m), gradients(other)
    assert seen == ["act_fn", "up_proj"] * 2 or sorted(seen) == ["act_fn"] * 2 + ["up_proj"] * 2


@pytest.mark.parametrize("name, part", (("BERT", "attention.output.LayerNorm"), ("Llama", "mlp.act_fn")))
def test_forwards_of_someone_else(name, part):
    """Of a layer that is read instead of called."""
    m, seen = model(name), []
    stock = gradients(m)
    layers = [layer for path, layer in m.named_modules() if path.endswith(part)]
    rusttorch.fuse_(m)
    for layer in layers:
        layer.forward = lambda x, layer=layer: seen.append(layer) or type(layer).forward(layer, x)
    for ours, their in zip(gradients(m), stock, strict=True):
        torch.testing.assert_close(ours, their)
    assert seen == layers and len(layers) == LAYERS


def test_attention_of_someone_else(monkeypatch):
    """What its forward reads of its module's globals, and the forward itself, are other ones after the first call."""
    m, other = model("Llama"), model("Llama")
    kind, x = type(m.model.layers[0].self_attn), batch(m)["input_ids"]
    rusttorch.fuse_(m)
    module, own = sys.modules[kind.__module__], kind.forward
    m(x)

    def backwards(q, k, cos, sin):
        return apply(q, k, cos, -sin)

    apply = module.apply_rotary_pos_emb
    with monkeypatch.context() as patch:
        patch.setattr(module, "apply_rotary_pos_emb", backwards)
        turned = other(x).logits
        torch.testing.assert_close(m(x).logits, turned)
    stock = other(x).logits
    assert not torch.allclose(turned, stock)
    torch.testing.assert_close(m(x).logits, stock)
    monkeypatch.setattr(rusttorch.fuse_transformers, "_ROPES", set())
    monkeypatch.setattr(rusttorch.fuse_transformers, "_ROTATING", {})
    with monkeypatch.context() as patch:  # as where a function cannot be run
        patch.setattr(rusttorch.fuse_transformers, "_is_rope", lambda function: False)
        assert "rope" not in hows(rusttorch.fuse_(other))
    assert "rope" in hows(rusttorch.fuse_(other))
    rusttorch.unfuse_(other)
    monkeypatch.setattr(kind, "forward", functools.partialmethod(own))
    torch.testing.assert_close(m(x).logits, stock)


def test_without_data():
    m = model("Llama").to("meta")
    rusttorch.fuse_(m)
    x = {name: value.to("meta") for name, value in batch(m).items()}
    assert m(**x).loss.is_meta and m.eval()(**x).logits.shape == (2, 12, WORDS)


def test_copies_and_files():
    m = model("Llama")
    stock = gradients(m)
    rusttorch.fuse_(m)
    ours = gradients(m)
    twin = copy.deepcopy(m)
    for layer in m.model.layers:
        nn.init.zeros_(layer.mlp.down_proj.weight)
    file = io.BytesIO()
    torch.save(twin, file)
    file.seek(0)
    for each in (twin, torch.load(file, weights_only=False)):
        assert all(map(torch.equal, gradients(each), ours))
        rusttorch.unfuse_(each)
        assert all(map(torch.equal, gradients(each), stock))


@pytest.mark.parametrize("name", ("GPT-2", "Llama", "BERT"))
@pytest.mark.parametrize("use_reentrant", (False, True))
def test_checkpoints(name, use_reentrant):
    m = model(name)
    rusttorch.fuse_(m)
    plain = gradients(m)
    m.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    assert all(map(torch.equal, gradients(m), plain))


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # which dynamo asks for
@pytest.mark.parametrize("name", ("GPT-2", "Llama"))
def test_compiled(name):
    m = model(name)
    stock = gradients(m)
    rusttorch.fuse_(m)
    torch._dynamo.reset()
    compiled = torch.compile(m, backend="aot_eager")
    m.zero_grad(set_to_none=True)
    compiled(**batch(m)).loss.backward()
    for ours, their in zip((p.grad for p in m.parameters()), stock[1:], strict=True):
        torch.testing.assert_close(ours, their)


def test_threads():
    """One with labels does not take another's logits."""
    m = model("Llama")
    rusttorch.fuse_(m)
    x, failed = batch(m), []

    def work(with_labels):
        for _ in range(20):
            output = m(**x) if with_labels else m(input_ids=x["input_ids"])
            if (output.logits is None) != with_labels:
                failed.append(with_labels)

    threads = [threading.Thread(target=work, args=(k % 2 == 0,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def lookalike(base, forward):
    """A class of which fuse_ sees a forward of transformers'."""
    forward.__module__ = "transformers.models.other.modeling_other"
    return type("Other", (base,), {"forward": forward})


def test_what_computes_something_else_is_left():
    mlp = model("Llama").model.layers[0].mlp
    norm = model("Llama").model.norm

    def other_mlp(self, x):
        return self.down_proj(self.act_fn(self.up_proj(x)) * self.gate_proj(x))

    def other_norm(self, x):
        x = x.to(torch.float32)
        variance = (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)).to(x.dtype)
        return variance * (1 + self.weight)

    for module, forward, how in ((mlp, other_mlp, "gated"), (norm, other_norm, "rms_norm")):
        module.__class__ = lookalike(type(module), forward)
        fusions = rusttorch.fuse_(nn.Sequential(module))
        assert [f for f in fusions if f.layers == ("0",)] == [
            Fusion(("0",), False, f"computes something else than {how}")
        ]
    mlp.__class__ = type("Mine", (type(mlp),), {"forward": lambda self, x: x})
    assert rusttorch.fuse_(nn.Sequential(mlp))[0:] == []
    mlp = model("Llama").model.layers[0].mlp
    mlp.forward = functools.partial(type(mlp).forward, mlp)
    assert rusttorch.fuse_(nn.Sequential(mlp)) == [Fusion(("0",), False, "has a forward of its own")]
    assert rusttorch.fuse_(nn.Sequential(model("Llama").model.layers[0].mlp.to("meta")))[0].fused
    m = model("GPT-2")
    m.forward = functools.partial(type(m).forward, m)
    assert rusttorch.fuse_(m)[0] == Fusion(("",), False, "has a forward of its own")
    assert "forward" not in vars(m.lm_head)


def test_random_numbers_stay():
    m = model("Llama")
    torch.manual_seed(5)
    rusttorch.fuse_(m)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))
