"""What the compiler made of the core's tiles: read from the op's library, which keeps its names."""

import platform
import re
import shutil
import subprocess

import pytest

from masked_lstm import ops

TILES = {"avx512": (6, "zmm"), "avx2": (3, "ymm")}  # rows of a full tile, and its registers
FUNCTIONS = (  # that hold a full tile's sums
    "ForwardTile<float, {rows}, float>",
    "MultiplyTile<float, {rows}, 4>",
    "WeightGradients<float>::AddTile<{rows}>",
)
LONGEST = 300  # instructions; sums in memory take three for each multiply-add


@pytest.fixture(scope="module")
def functions():
    """Demangled name: [(address, instruction)]."""
    library = ops._LIBRARY
    if platform.machine() != "x86_64" or not shutil.which("objdump") or not library.exists():
        pytest.skip("reads x86-64's disassembly of the op's library, which objdump prints")
    command = ["objdump", "-d", "-C", "--no-show-raw-insn", str(library)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    parts = re.split(r"^[0-9a-f]+ <(.*)>:$", text, flags=re.M)
    line = re.compile(r"^\s*([0-9a-f]+):\s+(\S.*)$", re.M)
    return {
        name.removeprefix("void "): [
            (int(address, 16), code) for address, code in line.findall(body)
        ]
        for name, body in zip(parts[1::2], parts[2::2], strict=True)
        if "masked_lstm::avx" in name
    }


def multiply_add_loops(code, register, per_row):
    """The innermost loops that do whole rows of a tile's multiply-adds."""
    index = {address: i for i, (address, _) in enumerate(code)}
    jumps = ((i, re.match(r"j\w+\s+([0-9a-f]+)", one)) for i, (_, one) in enumerate(code))
    ends = [(index.get(int(jump[1], 16), i + 1), i) for i, jump in jumps if jump]
    loops = [(first, last) for first, last in ends if first <= last < first + LONGEST]
    for loop in loops:
        if any(
            loop[0] <= first and last <= loop[1] for first, last in loops if (first, last) != loop
        ):
            continue
        body = [instruction for _, instruction in code[loop[0] : loop[1] + 1]]
        adds = [one for one in body if re.match(rf"vfmadd\d+ps\b.*%{register}", one)]
        if adds and len(adds) % per_row == 0:
            yield body


@pytest.mark.parametrize("isa", TILES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_sums_stay_in_registers(functions, isa, name):
    """No spill, and no array of sums: in its loops a tile neither stores nor loads a vector on the
    stack."""
    rows, register = TILES[isa]
    name = f"masked_lstm::{isa}::{name.format(rows=rows)}("
    if not any(other.startswith(f"masked_lstm::{isa}::") for other in functions):
        pytest.skip(f"built without {isa}")
    found = [code for other, code in functions.items() if other.startswith(name)]
    assert found, sorted(functions)
    for code in found:
        loops = list(multiply_add_loops(code, register, 4 * rows))
        assert loops
        frame = any(re.match(r"mov\s+%rsp,%rbp", instruction) for _, instruction in code)
        stack = re.compile(r"v.*\(%r[sb]p" if frame else r"v.*\(%rsp")
        assert not [one for body in loops for one in body if stack.match(one)]
