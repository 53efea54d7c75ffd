"""The checkers of notebook 10: another gate, a partial rotation, a rein on the logits, a clipped step."""

import torch

from course import device
from course.exercises.checking import Wrong, exercise, expect_close
from course.exercises.kernel_calls import only_kernels
from course.initial import rope_tables

SINGLE = 1e-5  # the tolerance of float32
HALF = device.pick(cpu=1.6e-2, gpu=6e-3)  # of one rounding to bfloat16, which Triton's interpreter cuts off
LOW = torch.float16 if device.DTYPE is torch.float16 else torch.bfloat16
DTYPES = ((torch.float32, SINGLE), (LOW, HALF))


def _call(function, *arguments):
    """What the answer returns, where PyTorch may make room for results and do nothing else."""
    with only_kernels():
        return function(*arguments)


def _expect_untouched(name: str, now: torch.Tensor, then: torch.Tensor) -> None:
    if not torch.equal(now, then):
        raise Wrong(f"The input {name} was modified, and it belongs to the caller.")


def _is(got, mistaken: torch.Tensor, tolerance: float) -> bool:
    """Whether an answer is what a known mistake gives."""
    if not isinstance(got, torch.Tensor) or got.shape != mistaken.shape:
        return False
    return bool((got.double() - mistaken).abs().max() <= tolerance * mistaken.abs().max())


def _expect(name: str, got, expected: torch.Tensor, tolerance: float, known: dict[str, torch.Tensor]) -> None:
    """`expect_close`, after it was asked whether `got` is one of the known mistakes."""
    if not _is(got, expected, tolerance):
        for message, mistaken in known.items():
            if _is(got, mistaken, tolerance):
                raise Wrong(f"{name}: {message}")
    expect_close(name, got, expected, tolerance)


# --- 10.1 -------------------------------------------------------------------------------


@exercise("10.1")
def geglu_backward(function) -> None:
    for dtype, tolerance in DTYPES:
        for i, shape in enumerate(((3, 5), (2, 700), (2, 3, 41), (1,))):
            gate, up, dy = (2 * device.normal(*shape, seed=10 * i + k, dtype=dtype) for k in range(3))
            kept = [x.clone() for x in (gate, up, dy)]
            got = _call(function, dy, (gate, up))
            for name, now, then in zip(("gate", "up", "dy"), (gate, up, dy), kept, strict=True):
                _expect_untouched(name, now, then)
            if not isinstance(got, tuple) or len(got) != 2:
                raise Wrong("The function should return two tensors: dgate and dup.")
            case = f"(shape {shape}, {dtype})"
            for name, x in zip(("dgate", "dup"), got, strict=True):
                if isinstance(x, torch.Tensor) and x.dtype != dtype:
                    raise Wrong(f"{name} is {x.dtype} and gate is {dtype}: they should be the same.")
            g, u, d = (x.double() for x in (gate, up, dy))
            a, s = 1.702, torch.sigmoid(1.702 * g)
            silu = torch.sigmoid(g)
            _expect(
                f"dgate {case}",
                got[0],
                d * u * (s + a * g * s * (1 - s)),
                tolerance,
                {
                    "the slope of σ(1.702 g) has a factor 1.702 of its own.": d * u * (s + g * s * (1 - s)),
                    "g stands in two places, so there are two terms.": d * u * s,
                    "the factor g is missing in the second term.": d * u * (s + a * s * (1 - s)),
                    "this is SwiGLU's: the sigmoid here is of 1.702 g.": d
                    * u
                    * (silu + g * silu * (1 - silu)),
                    "the factor up is missing.": d * (s + a * g * s * (1 - s)),
                    "this is dup: the two are exchanged.": d * g * s,
                },
            )
            _expect(
                f"dup {case}",
                got[1],
                d * g * s,
                tolerance,
                {
                    "the factor g is missing: y = g σ(1.702 g) u.": d * s,
                    "this is SwiGLU's: the sigmoid here is of 1.702 g.": d * g * silu,
                },
            )


# --- 10.2 -------------------------------------------------------------------------------


def _turned(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, apart: int, start: int = 0
) -> torch.Tensor:
    """Features start + i and start + apart + i of x turned as pairs, for each column i of the tables."""
    y, half = x.clone(), cos.shape[1]
    x1, x2 = x[..., start : start + half], x[..., start + apart : start + apart + half]
    c, s = cos[:, None], sin[:, None]
    y[..., start : start + half] = x1 * c - x2 * s
    y[..., start + apart : start + apart + half] = x2 * c + x1 * s
    return y


@exercise("10.2")
def rotate_part_(function) -> None:
    for dtype, tolerance in DTYPES:
        for i, (B, T, H, D, R) in enumerate(
            ((1, 7, 2, 8, 4), (2, 5, 3, 16, 4), (2, 3, 1, 12, 12), (1, 40, 2, 10, 6))
        ):
            given = device.normal(B, T, H, D, seed=100 + i, dtype=dtype)
            cos, sin = (device.put(table).to(dtype) for table in rope_tables(T, R, 100.0))
            for inverse in (False, True):
                x = given.clone()
                y = _call(function, x, cos, sin, inverse)
                case = f"(D = {D}, D_r = {R}, inverse={inverse}, {dtype})"
                if not isinstance(y, torch.Tensor) or y.data_ptr() != x.data_ptr():
                    raise Wrong("The function works in place: it should return x itself, rotated.")
                w, c, s = given.double(), cos.double(), sin.double()
                s = -s if inverse else s
                if torch.equal(x, given):
                    raise Wrong(f"x {case}: nothing was rotated.")
                if not torch.equal(x[..., R:], given[..., R:]):
                    far = "Is feature i paired with i + D/2? It is i + D_r/2 here. " if R < D else ""
                    raise Wrong(f"x {case}: features from D_r on should stay as they are. {far}")
                known = {"the sine's sign is the other direction's.": _turned(w, c, -s, R // 2)}
                if inverse:
                    known = {"with inverse=True it still turns forward.": _turned(w, c, -s, R // 2)}
                _expect(f"x {case}", x, _turned(w, c, s, R // 2), tolerance, known)


# --- 10.3 -------------------------------------------------------------------------------


@exercise("10.3")
def z_loss_rows(function) -> None:
    for dtype, tolerance in DTYPES:
        for i, (R, V, c) in enumerate(
            ((1, 3, 0.1), (4, 1000, 0.05), (3, 2049, 0.02), (5, 64, 0.0), (2, 9000, 0.3))
        ):
            given = 3 * device.normal(R, V, seed=200 + i, dtype=dtype)
            targets = device.put([(7 * r + 2) % V for r in range(R)])
            logits = given.clone()
            losses = _call(function, logits, targets, c)
            case = f"(R = {R}, V = {V}, c = {c}, {dtype})"
            if isinstance(losses, torch.Tensor) and losses.dtype != torch.float32:
                raise Wrong(f"losses are {losses.dtype}, and should be float32 whatever the logits are.")
            wide = given.double()
            z, p = torch.logsumexp(wide, 1), torch.softmax(wide, 1)
            rows = torch.arange(R, device=p.device)
            one_hot = torch.zeros_like(p)
            one_hot[rows, targets] = 1.0
            picked = wide[rows, targets]
            _expect(
                f"losses {case}",
                losses,
                z - picked + c * z * z,
                SINGLE,
                {
                    "the term c z² is missing.": z - picked,
                    "c z stands there, without the square.": z - picked + c * z,
                    "the square is of the loss, and should be of z = lse.": z
                    - picked
                    + c * (z - picked) ** 2,
                },
            )
            if torch.equal(logits, given):
                raise Wrong(
                    f"{case}: the logits were left as they are, and the gradient belongs in their place."
                )
            factor = (1 + 2 * c * z)[:, None]
            _expect(
                f"the gradient {case}",
                logits,
                factor * p - one_hot,
                tolerance,
                {
                    "the term c z² left no trace in it.": p - one_hot,
                    "the derivative of z² is 2 z, and the 2 is missing.": (1 + c * z)[:, None] * p - one_hot,
                    "the derivative of z by the logits is the softmax: 2 c z belongs to that alone.": factor
                    * (p - one_hot),
                    "2 c z was added to every logit: it is multiplied by the softmax.": p
                    - one_hot
                    + (2 * c * z)[:, None],
                    "the factor z is missing: the derivative of z² is 2 z.": (1 + 2 * c) * p - one_hot,
                    "it is divided by R: asked for was the sum of the losses, not their mean.": (
                        factor * p - one_hot
                    )
                    / R,
                },
            )


# --- 10.4 -------------------------------------------------------------------------------


def _adamw(w, g, m, v, f_m, f_v, step, lr, betas, eps, decay, f_decay=1.0):
    """One step in float64, with the gradient scaled by f_m for m and f_v for v -> w, m, v."""
    m = betas[0] * m + (1 - betas[0]) * f_m * g
    v = betas[1] * v + (1 - betas[1]) * (f_v * g) ** 2
    change = (m / (1 - betas[0] ** step)) / ((v / (1 - betas[1] ** step)).sqrt() + eps)
    return w - f_decay * lr * decay * w - lr * change, m, v


@exercise("10.4")
def clipped_adamw_(function) -> None:
    hyper = 0.05, (0.9, 0.95), 1e-3, 0.3  # lr, betas, eps, decay: eps and decay large enough to show
    for dtype in (torch.float32, LOW):
        for i, (shape, norm, max_norm, step) in enumerate(
            (((3, 5), 4.0, 1.0, 1), ((40, 41), 2.5, 0.5, 7), ((5,), 0.25, 1.0, 3), ((2, 3, 7), 8.0, 2.0, 2))
        ):
            w, m, v = (device.normal(*shape, seed=300 + 4 * i + k, dtype=torch.float32) for k in range(3))
            g, v = device.normal(*shape, seed=303 + 4 * i, dtype=dtype), v * v
            given = [x.clone() for x in (w, g, m, v)]
            n = torch.tensor(norm, device=w.device)
            got = _call(function, w, g, m, v, n, max_norm, step, *hyper)
            case = f"(norm {norm}, max_norm {max_norm}, step {step}, gradients {dtype})"
            if not isinstance(got, torch.Tensor) or got.data_ptr() != w.data_ptr():
                raise Wrong("The function works in place: it should return w itself, updated.")
            _expect_untouched("g", g, given[1])
            _expect_untouched("norm", n, torch.tensor(norm, device=w.device))
            wide = [x.double() for x in given]
            f = min(1.0, max_norm / norm)

            def stepped(f_m, f_v=None, wide=wide, step=step, **more):
                return _adamw(*wide, f_m, f_m if f_v is None else f_v, step, *hyper, **more)

            want = stepped(f)
            plain, always = stepped(1.0), stepped(max_norm / norm)
            unclipped = "the gradient is not scaled."
            larger = "a norm below max_norm leaves the gradients alone; here they were made larger."
            root = "g² scales with the square of the factor."
            _expect(f"m {case}", m, want[1], SINGLE, {unclipped: plain[1], larger: always[1]})
            known = {unclipped: plain[2], root: stepped(f, f**0.5)[2], larger: always[2]}
            _expect(f"v {case}", v, want[2], SINGLE, known)
            known = {
                "the decay was scaled too: it is not a part of the gradient.": stepped(f, f_decay=f)[0],
                "the weight decay is missing.": stepped(f, f_decay=0.0)[0],
            }
            _expect(f"w {case}", w, want[0], SINGLE, known)
