"""PyTorch: torch.nn.LSTM on the padded batch, and on packed sequences."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from cases import Case, Data
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from peers import Peer, Prepared


class Dense(Peer):
    version = f"torch {torch.__version__}"

    def __init__(self, threads: int):
        super().__init__(threads)
        torch.set_num_threads(threads)
        warnings.filterwarnings("ignore", "CUDA initialization")  # no GPU is wanted

    def refuses(self, case, data, pass_name):
        if case.directions == 2 and data.padded:
            return "its backward direction would start in the padding"
        return None

    def run(self, lstm, x, state, data):
        return lstm(x, state)[0]

    def prepare(self, case: Case, data: Data, pass_name: str) -> Prepared:
        lstm = torch.nn.LSTM(case.input_dim, case.units, bidirectional=case.directions == 2)
        with torch.no_grad():
            for weights, suffix in zip(data.weights, ("", "_reverse"), strict=False):
                kernel, recurrent_kernel, bias = map(torch.from_numpy, weights)
                getattr(lstm, f"weight_ih_l0{suffix}").copy_(kernel.T)  # gates i, f, g, o: the same
                getattr(lstm, f"weight_hh_l0{suffix}").copy_(recurrent_kernel.T)
                getattr(lstm, f"bias_ih_l0{suffix}").copy_(bias)
                getattr(lstm, f"bias_hh_l0{suffix}").zero_()

        def time_major(array):
            return torch.from_numpy(np.ascontiguousarray(array.swapaxes(0, 1)))

        x = time_major(data.inputs)
        d_outputs = time_major(data.d_outputs) if pass_name == "training" else None
        state = None
        if case.carry_state:
            state = tuple(torch.from_numpy(array)[None] for array in (data.h0, data.c0))
        x.requires_grad_(pass_name == "training")
        parameters = [x, *lstm.parameters()]

        @torch.inference_mode()
        def forward():
            return self.run(lstm, x, state, data)

        def training():  # torch.autograd.grad returns new gradients: there is no .grad to clear
            y = self.run(lstm, x, state, data)
            return y, torch.autograd.grad(y, parameters, grad_outputs=d_outputs)

        def decode(raw):
            outputs, gradients = (raw, None) if pass_name == "forward" else raw
            result = {"outputs": outputs.detach().numpy().swapaxes(0, 1)}
            if gradients is not None:
                result["inputs"] = gradients[0].numpy().swapaxes(0, 1)
                for direction in range(case.directions):
                    dw, dr, db, _ = gradients[1 + 4 * direction : 5 + 4 * direction]
                    result[f"kernel{direction}"] = dw.numpy().T
                    result[f"recurrent_kernel{direction}"] = dr.numpy().T
                    result[f"bias{direction}"] = db.numpy()
            return result

        return Prepared(forward if pass_name == "forward" else training, decode)


class Packed(Dense):
    """Packing and unpacking are part of the call: the user's batch arrives padded."""

    def refuses(self, case, data, pass_name):
        return None

    def run(self, lstm, x, state, data):
        lengths = torch.from_numpy(data.lengths)
        packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
        return pad_packed_sequence(lstm(packed, state)[0], total_length=x.shape[0])[0]
