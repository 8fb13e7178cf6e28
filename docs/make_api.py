"""Writes docs/api.md from the docstrings of the package's public names.

python docs/make_api.py
"""

import inspect
import pathlib
import re

import masked_lstm
from masked_lstm import core, cuda, reference, results

ROOT = pathlib.Path(__file__).resolve().parent.parent
SECTIONS = {
    "The layer": [masked_lstm.LSTM],
    "Models": [
        masked_lstm.replace_lstm,
        masked_lstm.restore_lstm,
        masked_lstm.replacement_report,
        masked_lstm.load_model,
    ],
    "TensorFlow functions": [masked_lstm.lstm, masked_lstm.ragged_lstm, masked_lstm.kernel_calls],
    "masked_lstm.core: NumPy, no TensorFlow": [
        core.forward,
        core.backward,
        core.isa,
        core.isas,
        core.fma_peak,
        core.kernel_calls,
        results.Forward,
        results.Gradients,
    ],
    "masked_lstm.cuda: PyTorch and CuPy arrays on a GPU": [
        cuda.forward,
        cuda.backward,
        cuda.forward_pair,
        cuda.backward_pair,
        cuda.available,
    ],
    "masked_lstm.reference: the specification": [reference.forward, reference.backward],
}


def source(thing):
    """A link to where it is defined."""
    path = pathlib.Path(inspect.getsourcefile(thing)).resolve().relative_to(ROOT)
    return f"[{path}](../{path})"


def entry(thing):
    module = thing.__module__.removeprefix("masked_lstm.")
    prefix = f"{module}." if module in ("core", "cuda", "reference") else ""
    kind = "class " if inspect.isclass(thing) else ""
    signature = str(inspect.signature(thing)).replace("NoneType", "None")
    if inspect.isclass(thing) and issubclass(thing, tuple):
        fields = inspect.getsource(thing).split('"""')[2].strip("\n")
        return f"### {kind}{prefix}{thing.__name__}\n\n{thing.__doc__}\n\n```\n{fields}\n```\n"
    doc = re.sub(r"\n{3,}", "\n\n", inspect.getdoc(thing))
    title = f"### {kind}{prefix}{thing.__name__}\n\n`{signature}`, {source(thing)}\n"
    parts = [title, f"```\n{doc}\n```\n"]
    if inspect.isclass(thing):
        for name, member in vars(thing).items():
            if isinstance(member, property) and member.__doc__:
                parts.append(f"`.{name}`: {' '.join(inspect.getdoc(member).split())}\n")
    return "\n".join(parts)


def text():
    parts = ["# API reference\n\nMade from the docstrings by `docs/make_api.py`.\n"]
    for title, things in SECTIONS.items():
        parts += [f"## {title}\n", *map(entry, things)]
    return "\n".join(parts)


if __name__ == "__main__":
    (ROOT / "docs" / "api.md").write_text(text())
