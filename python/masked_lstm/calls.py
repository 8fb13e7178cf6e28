"""Which kernels have run."""

import sys


def kernel_calls():
    """Calls that each fused kernel has served in this process, over all bindings.

    Returns:
        dict of str to int: a kernel's name (device, instruction set, dtype, pass, such as
        "cpu-avx2-float32-forward") to the number of calls; kernels that never ran are left out.
    """
    total = {}
    # A binding that was never loaded has served no call.
    for name in ("masked_lstm.core", "masked_lstm.cuda", "masked_lstm.ops"):
        if name in sys.modules:
            for kernel, count in sys.modules[name].kernel_calls().items():
                total[kernel] = total.get(kernel, 0) + count
    return total
