"""Which kernels a folder of csrc/cuda declares, and which of a check's the executor ran."""

import re
import subprocess


def declared(paths):
    declaration = r"__global__ void(?:\s+__launch_bounds__\([\w:, <>]+\))?\s+(\w+)\("
    names = set()
    for path in paths:
        found = re.findall(declaration, path.read_text())
        assert len(found) == path.read_text().count("__global__"), f"{path}: written in another way"
        names.update(found)
    return names


def compiled_and_ran(program, output, namespace):
    """Kernels of a C++ namespace with their template arguments: two sets of names. The program is
    linked not position-independent: the addresses it prints are those nm tells."""
    launched = {int(address, 16) for address in re.findall(r"launched 0x(\w+)", output)}
    symbols = subprocess.run(["nm", "-C", program], capture_output=True, text=True, check=True)
    kernel = rf"^(\w+) t (?:void )?{namespace}::(\w+Kernel(?:<.*>)?)\(.*\)$"
    compiled = {name: int(at, 16) for at, name in re.findall(kernel, symbols.stdout, re.M)}
    return set(compiled), {name for name, address in compiled.items() if address in launched}
