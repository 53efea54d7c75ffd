"""Mistakes that a careful person could make in the exercises of notebook 03."""

import torch

from kernels.reference import swiglu_backward, swiglu_forward


class _Swapped(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate, up):
        y, saved = swiglu_forward(gate, up)
        ctx.save_for_backward(*saved)
        return y

    @staticmethod
    def backward(ctx, dy):
        dgate, dup = swiglu_backward(dy, ctx.saved_tensors)
        return dup, dgate


class _Attribute(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate, up):
        y, ctx.saved = swiglu_forward(gate, up)
        return y

    @staticmethod
    def backward(ctx, dy):
        return swiglu_backward(dy, ctx.saved)


class _WithoutDy(_Swapped):
    @staticmethod
    def backward(ctx, dy):
        return swiglu_backward(torch.ones_like(dy), ctx.saved_tensors)


class _Ones(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, low, high):
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx, dy):
        return torch.ones_like(dy), None, None


class _ClampsDy(_Ones):
    @staticmethod
    def forward(ctx, x, low, high):
        ctx.bounds = low, high
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx, dy):
        return dy.clamp(*ctx.bounds), None, None


def _still_shared(x, weight):
    p = torch.softmax(x, dim=-1)
    saved = (p, weight)
    p *= weight
    return p, saved


def _modifies_input(x, weight):
    x -= x.amax(-1, keepdim=True)
    p = x.exp()
    p /= p.sum(-1, keepdim=True)
    return p * weight, (p, weight)


def _forgets_the_sum(x, weight):
    p = x.exp()
    return p * weight, (p, weight)


class _ForgetsDy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, function, *inputs):
        ctx.function = function
        ctx.save_for_backward(*inputs)
        return function(*inputs)

    @staticmethod
    def backward(ctx, dy):
        inputs = [x.detach().requires_grad_() for x in ctx.saved_tensors]
        with torch.enable_grad():
            total = ctx.function(*inputs).sum()
        return None, *torch.autograd.grad(total, inputs)


class _NotRecording(_ForgetsDy):
    @staticmethod
    def backward(ctx, dy):
        inputs = [x.detach().requires_grad_() for x in ctx.saved_tensors]
        y = ctx.function(*inputs)
        return None, *torch.autograd.grad(y, inputs, dy)


WRONG_ANSWERS = {
    "03.1": [
        (_Swapped.apply, "swapped"),
        (_Attribute.apply, "ctx.save_for_backward"),
        (_WithoutDy.apply, "dgate has the right shape but wrong values"),
        (lambda gate, up: torch.sigmoid(gate) * gate * up, "PyTorch's own"),
    ],
    "03.2": [
        (lambda x, low, high: x.clamp(low, high), "0 outside the bounds"),
        (_Ones.apply, "whatever dy is"),
        (_ClampsDy.apply, "dx has the right shape but wrong values"),
    ],
    "03.3": [
        (_still_shared, "after it was multiplied"),
        (_modifies_input, "The input x was modified"),
        (_forgets_the_sum, "check the factors"),
    ],
    "03.4": [
        (lambda function, *inputs: function(*inputs), "nothing but the inputs"),
        (_ForgetsDy.apply, "dy was forgotten"),
        (_NotRecording.apply, "without recording"),
    ],
}
