"""Inference runtimes: ONNX Runtime and OpenVINO, each with sequence lengths."""

from __future__ import annotations

import numpy as np
from cases import Case, Data

from peers import Peer, Prepared


def _reordered(data: Data, order: str) -> list[np.ndarray]:
    """W (directions, 4U, D), R (directions, 4U, U), bias (directions, 4U), gates as in `order`."""
    stacked = []
    for arrays in zip(*data.weights, strict=True):
        gates = [np.split(array.T, 4) for array in arrays]  # i, f, c, o, each (U, ...)
        stacked.append(
            np.stack([np.concatenate([g["ifco".index(o)] for o in order]) for g in gates])
        )
    return [np.ascontiguousarray(array) for array in stacked]


class InferenceRuntime(Peer):
    def refuses(self, case, data, pass_name):
        return "inference only" if pass_name == "training" else None


class OnnxRuntime(InferenceRuntime):
    def __init__(self, threads: int):
        super().__init__(threads)
        import onnx
        import onnxruntime

        self.onnx, self.onnxruntime = onnx, onnxruntime
        self.version = f"onnxruntime {onnxruntime.__version__}"

    def model(self, case: Case, data: Data) -> bytes:
        helper, float32 = self.onnx.helper, self.onnx.TensorProto.FLOAT
        w, r, b = _reordered(data, "iofc")
        constants = {"W": w, "R": r, "B": np.concatenate([b, np.zeros_like(b)], axis=1)}
        feeds = {"X": (float32, [case.timesteps, case.batch, case.input_dim])}
        if data.padded:
            feeds["lengths"] = (self.onnx.TensorProto.INT32, [case.batch])
        if case.carry_state:
            feeds |= {name: (float32, [1, case.batch, case.units]) for name in ("h0", "c0")}
        names = ["X", "W", "R", "B", "lengths", "h0", "c0"]
        names = [name if name in constants or name in feeds else "" for name in names]
        node = helper.make_node(
            "LSTM",
            names,
            ["Y", "h", "c"],
            hidden_size=case.units,
            direction="bidirectional" if case.directions == 2 else "forward",
        )
        graph = helper.make_graph(
            [node],
            "lstm",
            [helper.make_tensor_value_info(name, *kind) for name, kind in feeds.items()],
            [helper.make_tensor_value_info(name, float32, None) for name in ("Y", "h", "c")],
            [self.onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
        )
        opset = [helper.make_opsetid("", 17)]
        return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()

    def prepare(self, case: Case, data: Data, pass_name: str) -> Prepared:
        options = self.onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        session = self.onnxruntime.InferenceSession(
            self.model(case, data), options, providers=["CPUExecutionProvider"]
        )
        arrays = {
            "X": np.ascontiguousarray(data.inputs.swapaxes(0, 1)),
            "lengths": data.lengths,
            "h0": data.h0[None],
            "c0": data.c0[None],
        }
        shapes = {
            "Y": (case.timesteps, case.directions, case.batch, case.units),
            "h": (case.directions, case.batch, case.units),
            "c": (case.directions, case.batch, case.units),
        }
        # Bound buffers: neither inputs nor outputs are copied or allocated again in a call.
        binding = session.io_binding()
        buffers = [arrays]  # keeps the inputs alive
        for feed in session.get_inputs():
            binding.bind_cpu_input(feed.name, arrays[feed.name])
        for name, shape in shapes.items():
            value = self.onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32))
            buffers.append(value)
            binding.bind_ortvalue_output(name, value)

        def call():
            session.run_with_iobinding(binding)
            return buffers[1]

        def decode(raw):
            outputs = raw.numpy().transpose(2, 0, 1, 3)  # (T, directions, B, U) -> (B, T, ...)
            return {"outputs": outputs.reshape(case.batch, case.timesteps, -1)}

        return Prepared(call, decode)


class OpenVino(InferenceRuntime):
    def __init__(self, threads: int):
        super().__init__(threads)
        import openvino
        from openvino import opset13

        self.openvino, self.opset = openvino, opset13
        self.version = f"openvino {openvino.__version__.split('-')[0]}"

    def prepare(self, case: Case, data: Data, pass_name: str) -> Prepared:
        opset, batch = self.opset, case.batch
        x = opset.parameter(list(data.inputs.shape), np.float32)
        feeds, arrays = [x], [data.inputs]

        def feed(array, as_parameter):
            if not as_parameter:
                return opset.constant(array)
            feeds.append(opset.parameter(list(array.shape), array.dtype.type))
            arrays.append(array)
            return feeds[-1]

        def states(array):  # (B, directions, U)
            return np.ascontiguousarray(np.repeat(array[:, None], case.directions, axis=1))

        h0 = feed(states(data.h0), case.carry_state)
        c0 = feed(states(data.c0), case.carry_state)
        # Without padding the lengths are constants, which lets OpenVINO take its fused primitive.
        lengths = feed(data.lengths, data.padded)
        w, r, b = map(opset.constant, _reordered(data, "fico"))
        direction = "bidirectional" if case.directions == 2 else "forward"
        node = opset.lstm_sequence(x, h0, c0, lengths, w, r, b, case.units, direction)
        model = self.openvino.Model([node.output(index) for index in range(3)], feeds, "lstm")
        compiled = self.openvino.compile_model(
            model,
            "CPU",
            {
                "INFERENCE_NUM_THREADS": self.threads,
                "NUM_STREAMS": 1,
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_PRECISION_HINT": "f32",  # its default is bfloat16 where the CPU has AMX
            },
        )
        request = compiled.create_infer_request()

        def call():
            return request.infer(arrays, share_inputs=True, share_outputs=True)

        def decode(raw):
            outputs = raw[0].transpose(0, 2, 1, 3)  # (B, directions, T, U)
            return {"outputs": outputs.reshape(batch, case.timesteps, -1)}

        return Prepared(call, decode)
