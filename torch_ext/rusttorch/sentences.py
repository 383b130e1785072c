"""What each op does, in a sentence with its formula and shapes: of help(rusttorch.NAME)."""

# Of forms that follow from another op's: {} is its name.
FORMS = {
    "_backward": "The gradient of {}'s input, from that of its output: of its shape.",
    "_": "{}, written into input.",
}
BROADCAST = "input and other broadcast, and promote as in torch."
REDUCED = "Over dim (an int or several), or over all: the result is of input's shape without dim, or with 1s (keepdim)."
ALONG = "Along dim; of input's shape."
SAME = "Of input's shape."
LOSS = 'Its mean or sum, a 0-dim tensor, or of the broadcast shape (reduction "none"). Floating point.'

SENTENCES = {
    "add": f"input + alpha * other. {BROADCAST}",
    "sub": f"input - alpha * other. {BROADCAST}",
    "mul": f"input * other. {BROADCAST}",
    "div": f'input / other, exact, or rounded down ("floor") or towards zero ("trunc"). {BROADCAST}',
    "neg": f"-input. {SAME}",
    "abs": f"|input|. {SAME}",
    "exp": f"e to the power of input. {SAME}",
    "log": f"The natural logarithm: NaN below 0, -inf at 0. {SAME}",
    "sqrt": f"The square root: NaN below 0. {SAME}",
    "pow": f"input to the power of a number. {SAME}",
    "maximum": f"The larger of both, NaN where one is. {BROADCAST}",
    "minimum": f"The smaller of both, NaN where one is. {BROADCAST}",
    "clamp": "min(max(input, min), max), for numbers, or for tensors, which broadcast.",
    "addcmul": "input + value * tensor1 * tensor2. All three broadcast.",
    "addcdiv": "input + value * tensor1 / tensor2. All three broadcast.",
    "lerp": "input + weight * (end - input), for a number or a tensor as weight. All broadcast.",
    "fused_multiply_add": "a * b + c, with one rounding where the CPU has that. All three broadcast.",
    "add_scalar": f"input + alpha * other, for a number. {SAME}",
    "mul_scalar": f"input * other, for a number. {SAME}",
    "relu": f"max(input, 0). {SAME}",
    "leaky_relu": f"input, times negative_slope where it is below 0. {SAME}",
    "sigmoid": f"1 / (1 + exp(-input)). {SAME}",
    "tanh": f"The hyperbolic tangent. {SAME}",
    "gelu": 'input * P(X <= input) for a normal X (D. Hendrycks and K. Gimpel, 2016); approximate="tanh" is theirs '
    f"with tanh. {SAME}",
    "elu": f"scale * input, and scale * alpha * (exp(input_scale * input) - 1) where it is below 0. {SAME}",
    "selu": f"elu with the constants that keep mean and variance (G. Klambauer et al., 2017). {SAME}",
    "celu": f"max(input, 0) + min(0, alpha * (exp(input / alpha) - 1)). {SAME}",
    "silu": f"input * sigmoid(input) (swish: P. Ramachandran et al., 2017). {SAME}",
    "mish": f"input * tanh(softplus(input)) (D. Misra, 2019). {SAME}",
    "softplus": f"log(1 + exp(beta * input)) / beta, and input where beta * input > threshold. {SAME}",
    "hardswish": f"input * clamp(input + 3, 0, 6) / 6. {SAME}",
    "hardsigmoid": f"clamp(input + 3, 0, 6) / 6. {SAME}",
    "log_sigmoid": f"log(sigmoid(input)). {SAME}",
    "log_sigmoid_forward": "log_sigmoid, and what its derivative reads.",
    "softsign": f"input / (1 + |input|). {SAME}",
    "squareplus": f"(input + sqrt(input^2 + b)) / 2 (J. Barron, 2021). {SAME}",
    "sum": f"The sum, in dtype. {REDUCED}",
    "mean": f"The mean, in dtype. {REDUCED}",
    "prod": "The product, in dtype. Over one dim, or over all.",
    "max": "The largest value, over all; or (values, indices) over dim, of the first where several are equal.",
    "amax": f"The largest value; equal ones share its gradient. {REDUCED}",
    "argmax": "The index of the largest value, of the first of equal ones. Over one dim, or over all (flattened).",
    "min": "The smallest value, over all; or (values, indices) over dim, of the first where several are equal.",
    "amin": f"The smallest value; equal ones share its gradient. {REDUCED}",
    "argmin": "The index of the smallest value, of the first of equal ones. Over one dim, or over all (flattened).",
    "any": f"Whether one is not 0. {REDUCED}",
    "all": f"Whether none is 0. {REDUCED}",
    "var": f"The variance: squares of deviations, summed, over n - correction (1). {REDUCED}",
    "std": f"The square root of var. {REDUCED}",
    "var_mean": f"(var, mean). {REDUCED}",
    "linalg_vector_norm": f"sum(|input|^ord)^(1/ord), in dtype; inf, -inf and 0 are its limits. {REDUCED}",
    "norm": f"linalg_vector_norm by its older name: sum(|input|^p)^(1/p). {REDUCED}",
    "logsumexp": f"log(sum(exp(input))), without overflow. {REDUCED}",
    "cumsum": f"The sum up to each element, in dtype. {ALONG}",
    "cummax": f"(values, indices) of the largest up to each element, of the last where several are equal. {ALONG}",
    "cummin": f"(values, indices) of the smallest up to each element, of the last where several are equal. {ALONG}",
    "clone": f"A copy, in memory_format. {SAME}",
    "softmax": f"exp(input) / sum(exp(input)), in dtype. {ALONG}",
    "log_softmax": f"input - logsumexp(input), in dtype. {ALONG}",
    "_softmax": "softmax, as aten's decomposition calls it.",
    "_softmax_backward_data": "The gradient of softmax's input: output * (grad_output - sum(grad_output * output)).",
    "_log_softmax": "log_softmax, as aten's decomposition calls it.",
    "_log_softmax_backward_data": "The gradient of log_softmax's input: grad_output - exp(output) * sum(grad_output).",
    "mse_loss": f"(input - target)^2. {LOSS}",
    "l1_loss": f"|input - target|. {LOSS}",
    "smooth_l1_loss": f"(input - target)^2 / (2 beta), and |input - target| - beta / 2 from beta on. {LOSS}",
    "huber_loss": f"(input - target)^2 / 2, and delta * (|input - target| - delta / 2) from delta on. {LOSS}",
    "binary_cross_entropy": "-weight * (target * log(input) + (1 - target) * log(1 - input)), logarithms at least "
    f"-100, for input in [0, 1], else RuntimeError. {LOSS}",
    "bce_loss": f"binary_cross_entropy of input held in [epsilon, 1 - epsilon]. {LOSS}",
    "binary_cross_entropy_with_logits": "binary_cross_entropy of sigmoid(input), without overflow; pos_weight weighs "
    f"target. {LOSS}",
    "kl_div": f"target * (log(target) - input), for input and (log_target) target as logarithms. {LOSS}",
    "cross_entropy_loss": "-log_softmax(input)[target], weighted by class, for input [N, C] or [C] and target [N] or "
    "[] of classes (but ignore_index), or of input's shape, probabilities. Its weighted mean, sum, or each row's.",
    "cross_entropy_loss_forward": "cross_entropy_loss, and its slope, which its derivative scales.",
    "linear_cross_entropy": "cross_entropy_loss(input @ linear_weight.T + linear_bias, target), without all logits: "
    "input [N, D], linear_weight [C, D], linear_bias [C], target [N] of classes. Its mean or sum.",
    "linear_cross_entropy_forward": "linear_cross_entropy, and the gradients of its input, weight and bias.",
    "native_layer_norm": "(layer norm, mean, 1 / deviation): (input - mean) / sqrt(var + eps) * weight + bias over the "
    "last dims, normalized_shape, which is weight's and bias' (J. Ba et al., 2016).",
    "rms_norm": "input / sqrt(mean(input^2) + eps) * weight over the last dims, normalized_shape, which is weight's "
    f"(B. Zhang and R. Sennrich, 2019); eps is the dtype's where it is None. {SAME}",
    "_fused_rms_norm": "(rms_norm, 1 / its root).",
    "mm": "The product of matrices [M, K] and [K, N]: [M, N]. Of 16 bits it is summed in float32.",
    "bmm": "The products of B pairs of matrices, [B, M, K] and [B, K, N]: [B, M, N].",
    "addmm": "beta * input + alpha * mm(mat1, mat2), for input that broadcasts to [M, N]; not read where beta is 0.",
    "baddbmm": "beta * input + alpha * bmm(batch1, batch2), for input that broadcasts to [B, M, N].",
    "mv": "The product of a matrix [M, K] and a vector [K]: [M].",
    "addmv": "beta * input + alpha * mv(mat, vec), for input that broadcasts to [M].",
    "dot": "The sum of input * tensor, of vectors [K]: a number. Of 16 bits it is summed in float32.",
    "linear_act": "activation(linear(input, weight, bias)): input [..., K], weight [N, K], bias [N] or None: [..., N]. "
    'In one pass for "relu", "gelu", "gelu_tanh" and "silu"; two ops for "sigmoid", "tanh", "elu", "selu", "celu", '
    '"mish", "softplus" and "softsign".',
    "linear_act_forward": "linear_act, and the linear layer's own output, which its derivative reads.",
    "linear_glu": "activation(linear(input, gate_weight)) * linear(input, up_weight) (SwiGLU: N. Shazeer, 2020), for "
    "linear_act's activations, in one pass for the same ones: input [..., K], both weights [N, K]: [..., N].",
    "linear_glu_forward": "linear_glu, and both linear layers' outputs, which its derivative reads.",
    "native_dropout": "(dropout, which elements it keeps, as bools).",
    "dropout": f"0 with probability p, else input / (1 - p): the elements that stock keeps with this seed. {SAME}",
    "sgd_update": "param -= lr * (grad + weight_decay * param), in place.",
    "sgd_momentum_update": "torch.optim.SGD's update of one parameter with momentum, in place.",
    "adam_update": "torch.optim.Adam's update of one parameter, in place, for step counted from 1.",
    "adamw_update": "torch.optim.AdamW's update of one parameter, in place, for step counted from 1.",
}


def sentence(name):
    """Of an op without its overload, or that of the op whose form it is; empty where there is none."""
    if name in SENTENCES:
        return SENTENCES[name]
    form = next((form for form in FORMS if name.endswith(form) and name.removesuffix(form) in SENTENCES), "")
    return FORMS[form].format(name.removesuffix(form)) if form else ""
