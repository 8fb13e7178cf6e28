"""Our core, called from NumPy: no TensorFlow in the way."""

from __future__ import annotations

import numpy as np
from cases import Case, Data

from peers import Peer, Prepared


class Core(Peer):
    def __init__(self, threads: int):
        super().__init__(threads)
        import masked_lstm

        self.core = masked_lstm.core
        self.version = f"masked_lstm {masked_lstm.__version__}"

    def prepare(self, case: Case, data: Data, pass_name: str) -> Prepared:
        core, x, u = self.core, data.inputs, case.units
        options = {"num_threads": self.threads}
        if data.padded:
            options["sequence_lengths"] = data.lengths
        if case.carry_state:
            options["initial_state"] = (data.h0, data.c0)
        directions = [
            (weights, options | {"go_backwards": direction == 1})
            for direction, weights in enumerate(data.weights)
        ]

        def in_order(array, direction):
            """go_backwards gives and takes outputs in processing order, the last step first."""
            return array[:, ::-1] if direction == 1 else array

        def joined(outputs):
            if len(outputs) == 1:
                return outputs[0]
            return np.concatenate([in_order(y, d) for d, y in enumerate(outputs)], axis=-1)

        def forward():
            return joined([core.forward(x, *w, **extra).outputs for w, extra in directions])

        def training():
            outputs, gradients = [], []
            for direction, (weights, extra) in enumerate(directions):
                result = core.forward(x, *weights, save_reserve=True, **extra)
                dy = data.d_outputs[..., direction * u : (direction + 1) * u]
                dy = np.ascontiguousarray(in_order(dy, direction))
                extra = extra | {"overwrite_reserve": True}
                gradients.append(core.backward(x, *weights, result.reserve, dy, **extra))
                outputs.append(result.outputs)
            return joined(outputs), gradients

        def decode(raw):
            if pass_name == "forward":
                return {"outputs": raw}
            outputs, gradients = raw
            result = {"outputs": outputs, "inputs": sum(g.inputs for g in gradients)}
            for direction, g in enumerate(gradients):
                result[f"kernel{direction}"] = g.kernel
                result[f"recurrent_kernel{direction}"] = g.recurrent_kernel
                result[f"bias{direction}"] = g.bias
            return result

        return Prepared(forward if pass_name == "forward" else training, decode)
