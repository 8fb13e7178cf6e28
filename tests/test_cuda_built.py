"""What nvcc made of the CUDA kernels: read from the library that is installed."""

import importlib.util
import os
import pathlib
import re
import shutil
import subprocess

import pytest

from masked_lstm import cuda


def package_tools():
    """Where the test extra's packages put cuobjdump and nvdisasm: not every nvcc brings them."""
    spec = importlib.util.find_spec("nvidia")
    folders = [pathlib.Path(folder) for folder in spec.submodule_search_locations] if spec else []
    return os.pathsep.join(str(tool.parent) for f in folders for tool in f.glob("*/bin/cuobjdump"))


def dump(*options, of, cwd=None):
    path = os.pathsep.join([package_tools(), os.environ["PATH"]])
    command = [shutil.which("cuobjdump", path=path), *options, of]
    environment = os.environ | {"PATH": path}  # cuobjdump runs nvdisasm
    run = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout


@pytest.fixture(scope="module")
def library():
    if not cuda.available():
        pytest.skip("built without nvcc")
    if not shutil.which("cuobjdump") and not package_tools():
        pytest.skip("no cuobjdump, which NVIDIA's package is for Linux on x86-64")
    return cuda._cuda.__file__


@pytest.fixture(scope="module")
def usage(library):
    """(architecture, kernel's mangled name, its registers, stack and memory), one for each."""
    found = []
    for part in dump("-res-usage", of=library).split("arch = ")[1:]:
        kernels = re.findall(r"^ Function (\S+):\n\s+(REG:.*)$", part, re.M)
        found += [(part.split()[0], *kernel) for kernel in kernels]
    return found


def test_no_kernel_keeps_registers_in_memory(usage):
    """No spills and no arrays that are indexed: no stack at all."""
    for architecture in {architecture for architecture, *_ in usage}:
        assert len([one for one in usage if one[0] == architecture]) >= 4 * 8
    assert not [one for one in usage if "STACK:0 " not in one[2] or "LOCAL:0 " not in one[2]]


def test_blocks_see_what_others_wrote(library):
    """What the executor cannot show of the recurrences: their barrier between blocks releases and
    acquires, and nothing is read through the cache that does not take part in that."""
    parts = [part for part in dump("-ptx", of=library).split("arch = ") if ".entry" in part]
    if not parts:
        pytest.skip("built without PTX")
    for part in parts:
        functions = [re.split(r"\W", text, maxsplit=1) for text in part.split(".entry ")[1:]]
        recurrences = [(name, body) for name, body in functions if re.search("wardKernel", name)]
        assert len(recurrences) == 16
        for name, body in recurrences:
            barrier = r"\n\s*(?:membar\.gl|fence\.\S+\.gpu);.*atom\S*\.add.*ld\.acquire\.gpu"
            assert re.search(barrier, body, re.S), name
            assert "ld.global.nc" not in body, name


def test_hopper_kernels_use_tensor_cores(library, usage, tmp_path):
    kernels = {name for _, name, _ in usage if "4cuda6hopper" in name}
    if not kernels:
        pytest.skip("built without the kernels for Hopper")
    recurrences = [name for name in kernels if re.search(r"(Cluster|Grid)(For|Back)ward", name)]
    assert len(recurrences) >= 41  # 23 over clusters, 18 over the grid
    dump("-xelf", "all", of=library, cwd=tmp_path)
    for cubin in tmp_path.glob("*.cubin"):
        if b"4cuda6hopper" not in cubin.read_bytes():
            continue
        for function in dump("-sass", of=cubin).split("Function : ")[1:]:
            name = function.split()[0]
            kernels.discard(name)
            if re.search(r"(ClusterFor|ClusterBack|GridFor|GridBack|Tensor)\w*Kernel", name):
                assert re.search(r"HMMA\.(16816|1688)\.F32", function), name
    assert not kernels
