"""The transformer with its backward pass written by hand: no autograd, and no array library either.

It needs an engine of `kernels` and a dictionary of that engine's arrays; all that it asks of an array
is its shape, `reshape`, slicing, and `new_tensor` to make another one like it. The parameter names are
those of `course.model.Transformer`, so one checkpoint loads into both.

The model keeps the contract of its operations. Each method `_x_forward` returns its result and what it
saved, and `_x_backward` takes the result's gradient and what was saved, in the opposite order.
"""

import numpy as np

import kernels
from course.config import ModelConfig
from course.initial import rope_tables


class ManualTransformer:
    """A decoder-only transformer over an engine's pairs.

    `weights` maps every name of `config.parameter_shapes()` to an array. Raises `ValueError` if they
    are of another model or the engine is unknown.
    """

    def __init__(self, config: ModelConfig, weights: dict, engine: str = "reference"):
        config.check_weights(weights)
        self.config = config
        self.weights = weights
        self.ops = kernels.engine(engine)
        if config.position == "rope":
            tables = rope_tables(config.context_length, config.d_head, config.rope_theta)
            like = weights["embedding.weight"]
            self.cos, self.sin = (like.new_tensor(table) for table in tables)

    def loss_and_gradients(self, ids, targets) -> tuple:
        """The mean cross-entropy of predicting targets `(B, T)` from ids `(B, T)`, a scalar array,
        and its gradient with respect to every parameter, by name."""
        logits, saved = self.forward(ids)
        loss, loss_saved = self.ops.cross_entropy_forward(logits, targets)
        # The largest arrays of the step, (B, T, V), are let go as soon as nothing needs them.
        del logits
        dlogits = self.ops.cross_entropy_backward(loss.new_ones(()), loss_saved)
        del loss_saved
        return loss, self.backward(dlogits, saved)

    def loss(self, ids, targets):
        """The loss alone."""
        return self.ops.cross_entropy_forward(self.logits(ids), targets)[0]

    def logits(self, ids):
        """ids `(B, T)` -> logits `(B, T, V)`."""
        return self.forward(ids)[0]

    def forward(self, ids) -> tuple:
        """ids `(B, T)` -> logits `(B, T, V)`, saved. Raises `ValueError` for ids that do not fit."""
        self.config.check_ids(ids)
        x, embedding_saved = self._embedding_forward(ids)
        blocks_saved = []
        for i in range(self.config.n_layer):
            x, block_saved = self._block_forward(f"blocks.{i}", x)
            blocks_saved.append(block_saved)
        x, norm_saved = self._norm_forward("final_norm", x)
        logits, head_saved = self.ops.linear_forward(x, self.weights[self.config.head_name])
        return logits, (embedding_saved, blocks_saved, norm_saved, head_saved)

    def backward(self, dlogits, saved) -> dict:
        """The gradient of every parameter. Uses `saved` up, block by block, to free its memory."""
        embedding_saved, blocks_saved, norm_saved, head_saved = saved
        gradients = {}
        dx, dhead, _ = self.ops.linear_backward(dlogits, head_saved)
        dx = self._norm_backward("final_norm", dx, norm_saved, gradients)
        for i in reversed(range(self.config.n_layer)):
            dx = self._block_backward(f"blocks.{i}", dx, blocks_saved.pop(), gradients)
        self._embedding_backward(dx, embedding_saved, gradients)
        if self.config.tie_embeddings:  # one table used twice: its gradients add
            dhead, _ = self.ops.add_forward(dhead, gradients["embedding.weight"])
        gradients[self.config.head_name] = dhead
        return {name: gradients[name] for name in self.weights}

    # Tokens and positions

    def _embedding_forward(self, ids) -> tuple:
        x, saved = self.ops.embedding_forward(ids, self.weights["embedding.weight"])
        if self.config.position == "rope":
            return x, (saved,)
        places = ids.new_tensor(np.arange(ids.shape[1]))
        p, places_saved = self.ops.embedding_forward(places, self.weights["position.weight"])
        x, add_saved = self.ops.add_forward(x, p)
        return x, (saved, places_saved, add_saved)

    def _embedding_backward(self, dx, saved, gradients) -> None:
        saved, *learned = saved
        if learned:
            places_saved, add_saved = learned
            dx, dp = self.ops.add_backward(dx, add_saved)
            gradients["position.weight"] = self.ops.embedding_backward(dp, places_saved)
        gradients["embedding.weight"] = self.ops.embedding_backward(dx, saved)

    # A block: x + attention(norm(x)), then x + mlp(norm(x))

    def _block_forward(self, name, x) -> tuple:
        y, attention_norm = self._norm_forward(f"{name}.attention_norm", x)
        y, attention = self._attention_forward(f"{name}.attention", y)
        x, attention_add = self.ops.add_forward(x, y)
        y, mlp_norm = self._norm_forward(f"{name}.mlp_norm", x)
        y, mlp = self._mlp_forward(f"{name}.mlp", y)
        x, mlp_add = self.ops.add_forward(x, y)
        return x, (attention_norm, attention, attention_add, mlp_norm, mlp, mlp_add)

    def _block_backward(self, name, dx, saved, gradients):
        attention_norm, attention, attention_add, mlp_norm, mlp, mlp_add = saved
        for branch, norm, branch_saved, norm_saved, add_saved in (
            (self._mlp_backward, "mlp", mlp, mlp_norm, mlp_add),
            (self._attention_backward, "attention", attention, attention_norm, attention_add),
        ):
            dx, dy = self.ops.add_backward(dx, add_saved)
            dy = branch(f"{name}.{norm}", dy, branch_saved, gradients)
            dy = self._norm_backward(f"{name}.{norm}_norm", dy, norm_saved, gradients)
            dx, _ = self.ops.add_forward(dx, dy)  # x went two ways: its gradients add
        return dx

    # Attention

    def _attention_forward(self, name, x) -> tuple:
        B, T = x.shape[0], x.shape[1]
        D = self.config.d_head
        q, q_saved = self._linear_forward(f"{name}.q", x)
        k, k_saved = self._linear_forward(f"{name}.k", x)
        v, v_saved = self._linear_forward(f"{name}.v", x)
        q, k, v = (z.reshape(B, T, -1, D) for z in (q, k, v))
        q_rope = k_rope = None
        if self.config.position == "rope":
            q, q_rope = self.ops.rope_forward(q, self.cos[:T], self.sin[:T])
            k, k_rope = self.ops.rope_forward(k, self.cos[:T], self.sin[:T])
        sink, window = self.weights.get(f"{name}.sink"), self.config.sliding_window
        y, saved = self.ops.attention_forward(q, k, v, sink, True, window)
        y, o_saved = self._linear_forward(f"{name}.o", y.reshape(B, T, -1))
        return y, (q_saved, k_saved, v_saved, q_rope, k_rope, saved, o_saved)

    def _attention_backward(self, name, dy, saved, gradients):
        q_saved, k_saved, v_saved, q_rope, k_rope, saved, o_saved = saved
        B, T = dy.shape[0], dy.shape[1]
        dy = self._linear_backward(f"{name}.o", dy, o_saved, gradients)
        dy = dy.reshape(B, T, -1, self.config.d_head)
        dq, dk, dv, dsink = self.ops.attention_backward(dy, saved)
        if dsink is not None:
            gradients[f"{name}.sink"] = dsink
        if self.config.position == "rope":
            dq = self.ops.rope_backward(dq, q_rope)
            dk = self.ops.rope_backward(dk, k_rope)
        dq, dk, dv = (dz.reshape(B, T, -1) for dz in (dq, dk, dv))
        dx_q = self._linear_backward(f"{name}.q", dq, q_saved, gradients)
        dx_k = self._linear_backward(f"{name}.k", dk, k_saved, gradients)
        dx_v = self._linear_backward(f"{name}.v", dv, v_saved, gradients)
        dx, _ = self.ops.add_forward(dx_q, dx_k)
        dx, _ = self.ops.add_forward(dx, dx_v)
        return dx

    # The feed-forward layer

    def _mlp_forward(self, name, x) -> tuple:
        up, up_saved = self._linear_forward(f"{name}.up", x)
        gate_saved = None
        if self.config.mlp == "swiglu":
            gate, gate_saved = self._linear_forward(f"{name}.gate", x)
            h, h_saved = self.ops.swiglu_forward(gate, up)
        else:
            h, h_saved = self.ops.gelu_forward(up)
        y, down_saved = self._linear_forward(f"{name}.down", h)
        return y, (up_saved, gate_saved, h_saved, down_saved)

    def _mlp_backward(self, name, dy, saved, gradients):
        up_saved, gate_saved, h_saved, down_saved = saved
        dh = self._linear_backward(f"{name}.down", dy, down_saved, gradients)
        if self.config.mlp == "gelu":
            dup = self.ops.gelu_backward(dh, h_saved)
            return self._linear_backward(f"{name}.up", dup, up_saved, gradients)
        dgate, dup = self.ops.swiglu_backward(dh, h_saved)
        dx_gate = self._linear_backward(f"{name}.gate", dgate, gate_saved, gradients)
        dx_up = self._linear_backward(f"{name}.up", dup, up_saved, gradients)
        return self.ops.add_forward(dx_gate, dx_up)[0]

    # Layers with weights of their own: the gradients of those go into `gradients` by name

    def _linear_forward(self, name, x) -> tuple:
        weight, bias = self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias")
        return self.ops.linear_forward(x, weight, bias)

    def _linear_backward(self, name, dy, saved, gradients):
        dx, gradients[f"{name}.weight"], dbias = self.ops.linear_backward(dy, saved)
        if dbias is not None:
            gradients[f"{name}.bias"] = dbias
        return dx

    def _norm_forward(self, name, x) -> tuple:
        weight, eps = self.weights[f"{name}.weight"], self.config.norm_eps
        if self.config.norm == "rms":
            return self.ops.rmsnorm_forward(x, weight, eps)
        return self.ops.layernorm_forward(x, weight, self.weights[f"{name}.bias"], eps)

    def _norm_backward(self, name, dy, saved, gradients):
        if self.config.norm == "rms":
            dx, gradients[f"{name}.weight"] = self.ops.rmsnorm_backward(dy, saved)
        else:
            dx, gradients[f"{name}.weight"], gradients[f"{name}.bias"] = self.ops.layernorm_backward(
                dy, saved
            )
        return dx
