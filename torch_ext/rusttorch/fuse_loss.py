"""The loss of transformers' language models without their logits: a part of fuse_(model).

Of 32,000 words the logits and their gradient take more memory than the rest of a training step. So while a model in
training is called with labels, the linear layer to the logits, its head, makes none: linear_cross_entropy reads what
the head was given. `logits` of such a call is None. A causal model's forward is then called without its labels; that of
a masked one or of an encoder and decoder, which calls CrossEntropyLoss itself, with ours in the place of it.

A model is recognised by the names that its class's forward reads. Where a part of the model has the head, that the part
gives the head's logits is seen on a twin of it without data.
"""

import copy
import functools
import inspect
import sys
import threading

import torch
from torch import nn

from . import _C
from .fusion import is_plain, is_put, put, with_global

IGNORED = -100
# Names that a forward may read, beside its base model's, and those that it must.
CAUSAL_READS = {
    *("CausalLMOutputWithPast", "CausalLMOutputWithCrossAttentions", "attentions", "cache", "cls", "config"),
    *("cross_attentions", "final_logit_softcapping", "hidden_states", "last_hidden_state", "lm_head", "loss_function"),
    *("past_key_values", "slice_logits_to_keep", "tanh", "torch", "vocab_size"),
}
CAUSAL_MUST = {"loss_function", "last_hidden_state"}
CROSS_ENTROPY_READS = {
    *("BaseModelOutput", "CrossEntropyLoss", "MaskedLMOutput", "Seq2SeqLMOutput", "ValueError", "_shift_right"),
    *("attentions", "cache", "cls", "config", "cross_attentions", "decoder", "decoder_attentions"),
    *("decoder_hidden_states", "decoder_start_token_id", "device", "encoder", "encoder_attentions"),
    *("encoder_hidden_states", "encoder_last_hidden_state", "hidden_states", "isinstance", "last_hidden_state", "len"),
    *("lm_head", "max_target_positions", "model", "model_dim", "pad_token_id", "proj_out", "reshape", "return_dict"),
    *("scale_decoder_outputs", "shape", "shift_tokens_right", "size", "to", "use_cache", "view", "vocab_size"),
}
LM_OUTPUTS = {"MaskedLMOutput", "Seq2SeqLMOutput"}


class _Call:
    """Of a model's forward: the head that makes no logits, or None, and what it was given."""

    def __init__(self, head):
        self.head, self.hidden = head, None


class _Now(threading.local):
    """Of a thread: the calls that it is in, the innermost last."""

    def __init__(self):
        self.calls = []


_now = _Now()


def _head(head, input):
    """The forward of a linear layer to logits: none of them, while its model computes its loss."""
    if not _now.calls or _now.calls[-1].head is not head:
        return type(head).forward(head, input)
    _now.calls[-1].hidden = input
    return input.new_empty((0, *input.shape[1:-1], head.out_features))  # which views make (0, words)


def _head_for_loss(module, path, kwargs):
    """The head, if a call of a language model is one for its loss, with nothing that a loss of ours does not know."""
    labels = kwargs.get("labels")
    if labels is None or labels.dtype != torch.int64 or not module.training or not torch.is_grad_enabled():
        return None
    as_dict = kwargs.get("return_dict")
    if not (module.config.return_dict if as_dict is None else as_dict):
        return None
    keep = kwargs.get("logits_to_keep", 0)
    if not isinstance(keep, int) or keep != 0:
        return None
    known = {"num_items_in_batch", "return_dict", "output_attentions", "output_hidden_states"}
    if not kwargs.keys() <= known | inspect.signature(type(module).forward).parameters.keys():
        return None
    head = _plain_head(module, path)
    return head if head is not None and is_put(vars(head).get("forward")) else None


def _plain_head(module, path):
    """The head, if neither it nor a part that it is in has somebody's hooks or forward, which may ask for logits."""
    part = module
    for name in path.split("."):
        part = getattr(part, name, None)
        if not isinstance(part, nn.Module) or not is_plain(part):
            return None
    return part


def _softcap(module):
    reads = inspect.unwrap(type(module).forward).__code__.co_names
    return module.config.final_logit_softcapping if "final_logit_softcapping" in reads else None


def _call(head, forward, module, args, kwargs):
    """The output of a forward in which the head, if any, makes no logits, and what it was given.

    That is None where it made them, as it does in a part that has been compiled.
    """
    call = _Call(head)
    _now.calls.append(call)
    try:
        output = forward(module, *args, **kwargs)
    finally:
        _now.calls.pop()
    if call.hidden is not None:
        output = type(output)(**{**output, "logits": None})
    return output, call.hidden


def _cross_entropy(head, hidden, logits, target, reduction="mean", ignore_index=IGNORED, softcap=None):
    """Of what the head was given, or of its logits where that is None."""
    rows, target = (logits if hidden is None else hidden).flatten(0, -2), target.flatten()
    if len(target) != len(rows):  # in stock's words
        raise ValueError(f"Expected input batch_size ({len(rows)}) to match target batch_size ({len(target)}).")
    target = target.to(rows.device)
    if hidden is None:
        return nn.functional.cross_entropy(rows, target, ignore_index=ignore_index, reduction=reduction)
    return _C.functions.linear_cross_entropy(
        rows, head.weight, target, head.bias, reduction, ignore_index, softcap=softcap
    )


def _next_tokens(labels):
    return nn.functional.pad(labels, (0, 1), value=IGNORED)[..., 1:]


def _is_causal(loss_function):
    """Whether it is transformers' loss of causal language models, with the defaults that we know."""
    return loss_function is sys.modules["transformers.loss.loss_utils"].ForCausalLMLoss


def _causal_lm(path, module, *args, **kwargs):
    head = _head_for_loss(module, path, kwargs) if _is_causal(module.loss_function) else None
    forward = type(module).forward
    if head is None:
        return _call(None, forward, module, args, kwargs)[0]
    output, hidden = _call(head, forward, module, args, kwargs | {"labels": None})
    logits = output.logits.float() if hidden is None else None
    count = kwargs.get("num_items_in_batch")  # what the sum is divided by; None: the labels that are not ignored
    reduction = "mean" if count is None else "sum"
    target = _next_tokens(kwargs["labels"])
    loss = _cross_entropy(head, hidden, logits, target, reduction, softcap=_softcap(module))
    if count is not None:
        loss = loss / (count.to(loss.device) if isinstance(count, torch.Tensor) else count)
    return type(output)(loss=loss, **output)


class _CrossEntropyLoss:
    """torch.nn's, as these forwards call it, of the model whose forward runs."""

    def __init__(self, ignore_index=IGNORED):
        self.ignore_index = ignore_index

    def __call__(self, logits, target):
        call = _now.calls[-1]
        loss = _cross_entropy(call.head, call.hidden, logits, target, ignore_index=self.ignore_index)
        # Ours is float32 for 16 bits; stock's only where autocast makes it so.
        return loss if torch.is_autocast_enabled(logits.device.type) else loss.to(logits.dtype)


def _with_our_loss(forward):
    """A class's forward with our loss in the place of torch's; None where it has another, or none can be put."""
    if getattr(inspect.unwrap(forward), "__globals__", {}).get("CrossEntropyLoss") is not nn.CrossEntropyLoss:
        return None
    return with_global(forward, "CrossEntropyLoss", _CrossEntropyLoss)


def _calls_cross_entropy(path, module, *args, **kwargs):
    """Of a model whose forward calls CrossEntropyLoss."""
    head, forward = _head_for_loss(module, path, kwargs), type(module).forward
    ours = None if head is None else _with_our_loss(forward)
    if ours is None:
        return _call(None, forward, module, args, kwargs)[0]
    return _call(head, ours, module, args, kwargs)[0]


def _forward_of(module, reads):
    """Our forward of a language model, by what its class's reads, or None."""
    reads = reads - {getattr(module, "base_model_prefix", None)}
    if CAUSAL_MUST <= reads <= CAUSAL_READS and _is_causal(module.loss_function):
        return _causal_lm
    calls = "CrossEntropyLoss" in reads and not LM_OUTPUTS.isdisjoint(reads) and reads <= CROSS_ENTROPY_READS
    return _calls_cross_entropy if calls and _with_our_loss(type(module).forward) else None


def _gives_logits(module, head, path):
    """Whether the part of the model that has the head, if any, returns what the head does, which is seen on a twin."""
    name, _, rest = path.partition(".")
    if not rest:
        return True
    part, given = getattr(module, name), []
    sizes = {id(t): torch.empty_like(t, device="meta") for t in (*part.parameters(), *part.buffers())}
    try:
        twin = copy.deepcopy(part, sizes)
        for each in twin.modules():  # which are others' to see
            each._forward_hooks.clear(), each._forward_pre_hooks.clear()
        twin.get_submodule(rest).register_forward_hook(lambda _head, _inputs, output: given.append(output))
        output = twin(torch.empty(1, 2, module.config.hidden_size, dtype=head.weight.dtype, device="meta"))
    except Exception:  # whatever else it may need
        return False
    return len(given) == 1 and output is given[0]


def fuse(module, reads):
    """Our forward of a language model, and what that is; or why there is none; or nothing."""
    head = getattr(module, "get_output_embeddings", lambda: None)()
    if head is None or "labels" not in inspect.signature(type(module).forward).parameters:
        return None, None
    forward = _forward_of(module, reads)
    if forward is None:
        return None, "its loss is not that of a language model that is known"
    path = next(name for name, part in module.named_modules() if part is head)
    if type(head) is not nn.Linear or "forward" in vars(head) or _plain_head(module, path) is None:
        return None, "its head is not a linear layer alone"
    if not _gives_logits(module, head, path):
        return None, "what its head gives is not yet its logits"
    if "forward" in vars(module):
        return None, "has a forward of its own"
    put(head, _head)
    return functools.partial(forward, path), "linear_cross_entropy"
