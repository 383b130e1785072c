"""Whole models, stock torch against rusttorch (its ops and its pool), in one process, one after the other.

    python bench/models.py [--models NAME ...] [--threads 1] [--pairs 7] [--out bench/results.jsonl]

The models are transformers' (pip install transformers), with random weights: speed does not depend on them. Training is
a step of AdamW, clipped, in float32 or in bfloat16 autocast: over 512 tokens, of 8,192 words, through 4 layers, d 256;
ViT over 8 images of 96 x 96; ResNet-18, ConvNeXt (2, 2, 6 and 2 blocks of 48 to 384 channels) and MobileNetV2 over 8 of
224 x 224. GPT-2 (124M) and a Llama (246M) generate, in the dtype that is named: prefill is the forward of 64 tokens,
decode that of the next one. In a row with fuse_ our model has gone through that.
"""

import argparse
import importlib.util
import logging
import time
import warnings
from pathlib import Path

import rusttorch
import torch
from rusttorch.bench import measure, results

WORDS, TOKENS, PROMPT = 8192, 512, 64
SMALL = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}


def gpt2():
    """Of 124M parameters."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config())


def small_gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=WORDS, n_embd=256, n_layer=4, n_head=4))


def llama(**config):
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**config))


def small_llama():
    return llama(vocab_size=WORDS, intermediate_size=688, **SMALL)


def large_llama():
    """Of 246M parameters."""
    sizes = {"hidden_size": 1024, "num_hidden_layers": 14, "num_attention_heads": 16, "intermediate_size": 2816}
    return llama(vocab_size=32000, **sizes)


def bert():
    from transformers import BertConfig, BertForMaskedLM

    return BertForMaskedLM(BertConfig(vocab_size=WORDS, intermediate_size=1024, **SMALL))


def vit():
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(ViTConfig(image_size=96, intermediate_size=1024, **SMALL))


def resnet18():
    from transformers import ResNetConfig, ResNetForImageClassification

    widths = [64, 128, 256, 512]
    return ResNetForImageClassification(ResNetConfig(hidden_sizes=widths, depths=[2] * 4, layer_type="basic"))


def convnext():
    from transformers import ConvNextConfig, ConvNextForImageClassification

    widths = [48, 96, 192, 384]
    return ConvNextForImageClassification(ConvNextConfig(hidden_sizes=widths, depths=[2, 2, 6, 2]))


def mobilenet_v2():
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    return MobileNetV2ForImageClassification(MobileNetV2Config())


def text():
    x = torch.randint(WORDS, (1, TOKENS))
    return {"input_ids": x, "labels": x}


def images(size=96):
    return {"pixel_values": torch.randn(8, 3, size, size), "labels": torch.randint(2, (8,))}


def large_images():
    return images(224)


def training(make, inputs, autocast=None, fuse=False):
    model, batch = make(), inputs()
    if fuse:
        rusttorch.fuse_(model, **batch)
    optimizer = torch.optim.AdamW(model.parameters())

    def step():
        optimizer.zero_grad()
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def prefill(make, dtype):
    model, x = make().to(dtype).eval(), torch.randint(WORDS, (1, PROMPT))
    return torch.inference_mode()(lambda: model(input_ids=x, use_cache=True))


@torch.inference_mode()
def decode(make, dtype):
    model = make().to(dtype).eval()
    cache = model(input_ids=torch.randint(WORDS, (1, PROMPT)), use_cache=True).past_key_values
    token = torch.randint(WORDS, (1, 1))

    @torch.inference_mode()
    def step():
        model(input_ids=token, past_key_values=cache, use_cache=True)
        cache.crop(-1)

    return step


F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
MODELS = {
    "GPT-2, training": (training, small_gpt2, text),
    "Llama, training": (training, small_llama, text),
    "BERT, training": (training, bert, text),
    "ViT, training": (training, vit, images),
    "ResNet-18, training": (training, resnet18, large_images),
    "ConvNeXt, training": (training, convnext, large_images),
    "MobileNetV2, training": (training, mobilenet_v2, large_images),
    "ResNet-18, training, fuse_": (training, resnet18, large_images),
    "MobileNetV2, training, fuse_": (training, mobilenet_v2, large_images),
    "GPT-2, training, bfloat16": (training, small_gpt2, text, BF16),
    "Llama, training, bfloat16": (training, small_llama, text, BF16),
    "BERT, training, bfloat16": (training, bert, text, BF16),
    "GPT-2, training, fuse_": (training, small_gpt2, text),
    "Llama, training, fuse_": (training, small_llama, text),
    "BERT, training, fuse_": (training, bert, text),
    "GPT-2, training, bfloat16, fuse_": (training, small_gpt2, text, BF16),
    "Llama, training, bfloat16, fuse_": (training, small_llama, text, BF16),
    "BERT, training, bfloat16, fuse_": (training, bert, text, BF16),
    **{f"GPT-2 124M, prefill, {str(dtype)[6:]}": (prefill, gpt2, dtype) for dtype in (F32, BF16, F16)},
    **{f"GPT-2 124M, decode, {str(dtype)[6:]}": (decode, gpt2, dtype) for dtype in (F32, BF16, F16)},
    **{f"Llama 246M, decode, {str(dtype)[6:]}": (decode, large_llama, dtype) for dtype in (F32, BF16, F16)},
}


def compared(name, pairs):
    torch.manual_seed(0)
    make, *arguments = MODELS[name]
    step = make(*arguments)
    ours = make(*arguments, fuse=True) if name.endswith("fuse_") else step

    def swap(arm):
        rusttorch.enable() if arm == "ours" else rusttorch.disable()

    start = time.perf_counter()
    step()
    slow = time.perf_counter() - start > 2
    found = measure.compare((step, (), {}), (ours, (), {}), 2 if slow else pairs, swap)
    return {"model": name, **found}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS, metavar="NAME")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=7, help="timed pairs of blocks for each model")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if not importlib.util.find_spec("transformers"):
        print("no transformers (pip install transformers): whole models are left out")
        return
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(options.threads)
    found = []
    for name in options.models:
        line = compared(name, options.pairs)
        found.append(line | {"threads": options.threads})
        low, high = line["interval"]
        print(
            f"{name:30} {line['ratio']:6.2f} [{low:.2f}, {high:.2f}]  "
            f"{line['theirs_us'] / 1e3:.1f} to {line['ours_us'] / 1e3:.1f} ms",
            flush=True,
        )
    if options.out:
        results.save(options.out, "models", found)


if __name__ == "__main__":
    main()
