"""What every engine refuses, said once: a wrong shape is an error before anything is computed.

The functions read only `.shape`, so they serve any kind of array.
"""


def check_width(operation: str, x, width: int) -> None:
    """The last dimension of `x` must be `width`, the one that the weight was made for."""
    if x.shape[-1] != width:
        raise ValueError(
            f"{operation}: the input's last dimension is {x.shape[-1]} and the weight's is {width}; "
            "they must be equal."
        )


def check_bias(operation: str, weight, bias, name: str = "weight") -> None:
    """weight `(C_out, C_in)`, called `name`, needs a bias `(C_out)`, or None."""
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise ValueError(
            f"{operation}: {name} {tuple(weight.shape)} needs a bias of shape ({weight.shape[0]},), "
            f"got {tuple(bias.shape)}."
        )


def check_linear(x, weight, bias) -> None:
    """x `(..., C_in)` needs weight `(C_out, C_in)` and, where there is one, a bias `(C_out)`."""
    check_width("linear", x, weight.shape[1])
    check_bias("linear", weight, bias)


def check_mlp(x, up, up_bias, down, down_bias, operation: str = "gelu_mlp", wide: int = 1) -> None:
    """x `(..., C)` needs up `(F, C)`, down `(C_out, F)` and, where there are biases, `(F)` and `(C_out)`.

    up and its bias may be several weights together, `wide` F in place of F.
    """
    check_width(operation, x, up.shape[1])
    if wide * down.shape[1] != up.shape[0]:
        relation = "they must be equal" if wide == 1 else f"the first must be {wide} times the second"
        raise ValueError(
            f"{operation}: up {tuple(up.shape)} makes {up.shape[0]} features and down {tuple(down.shape)} "
            f"reads {down.shape[1]}; {relation}."
        )
    check_bias(operation, up, up_bias, "up")
    check_bias(operation, down, down_bias, "down")


def check_rope(x, cos, sin) -> None:
    """x `(B, T, H, D)` with D even needs tables `(T, D/2)`."""
    if len(x.shape) != 4 or x.shape[-1] % 2:
        raise ValueError(f"rope: expected x of shape (B, T, H, D) with D even, got {tuple(x.shape)}.")
    expected = (x.shape[1], x.shape[3] // 2)
    if tuple(cos.shape) != expected or tuple(sin.shape) != expected:
        raise ValueError(
            f"rope: for x of shape {tuple(x.shape)} the tables must have shape {expected}, "
            f"got cos {tuple(cos.shape)} and sin {tuple(sin.shape)}."
        )


def check_attention(q, k, v, sink, causal: bool, window: int | None) -> None:
    """q `(B, T, H, D)`, k and v `(B, S, H_kv, D)`, sink `(H)`, H a multiple of H_kv, T <= S if causal,
    S > 0 without a sink."""
    if len(q.shape) != 4 or len(k.shape) != 4:
        raise ValueError(
            "attention: expected q (B, T, H, D) and k, v (B, S, H_kv, D), "
            f"got q {tuple(q.shape)} and k {tuple(k.shape)}."
        )
    B, T, H, D = q.shape
    S, H_kv = k.shape[1], k.shape[2]
    if tuple(k.shape) != tuple(v.shape) or k.shape[0] != B or k.shape[3] != D:
        raise ValueError(
            f"attention: q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)} do not agree "
            "in batch or head width; expected k and v of shape (B, S, H_kv, D)."
        )
    if H_kv == 0 or H % H_kv:
        raise ValueError(
            f"attention: {H} query heads cannot share {H_kv} key-value heads evenly; "
            "choose n_kv_head so that it divides n_head."
        )
    if S == 0 and sink is None:
        raise ValueError("attention: a softmax over no keys; give at least one key, or a sink.")
    if causal and T > S:
        raise ValueError(
            f"attention: causal attention needs at least as many keys as queries, got T = {T} "
            f"queries and S = {S} keys."
        )
    if window is not None and (not causal or window < 1):
        raise ValueError(
            f"attention: a sliding window needs causal attention and at least 1 key, got window = "
            f"{window} with causal = {causal}."
        )
    if sink is not None and tuple(sink.shape) != (H,):
        raise ValueError(f"attention: expected one sink a head, shape ({H},), got {tuple(sink.shape)}.")


def check_classes(logits, targets) -> None:
    """logits `(..., V)` with targets `(...)`."""
    if tuple(logits.shape[:-1]) != tuple(targets.shape):
        raise ValueError(
            f"cross_entropy: logits {tuple(logits.shape)} need targets of shape "
            f"{tuple(logits.shape[:-1])}, got {tuple(targets.shape)}."
        )
