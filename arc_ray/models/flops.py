"""FLOPs of a training step and what GPUs can do: hours before a run, MFU during it. Numbers only, no torch."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Gpu:
    """A GPU as its maker describes it."""

    name: str
    tflops: float
    """Dense bfloat16 tensor-core peak with float32 accumulation (float16 on T4 and V100), in 10^12 per second."""
    bandwidth: float
    """Of its memory, in 10^12 bytes per second."""


GPUS = (
    Gpu("T4", 65.0, 0.32),
    Gpu("V100", 125.0, 0.9),
    Gpu("RTX 3090", 71.0, 0.936),
    Gpu("RTX 4090", 165.2, 1.008),
    Gpu("RTX 5090", 209.5, 1.792),
    Gpu("RTX 6000 Ada", 364.2, 0.96),
    Gpu("RTX PRO 6000", 503.8, 1.792),
    Gpu("RTX PRO 6000 Max-Q", 438.9, 1.792),
    Gpu("A10G", 70.0, 0.6),
    Gpu("A10", 125.0, 0.6),
    Gpu("L4", 121.0, 0.3),
    Gpu("L40S", 362.0, 0.864),
    Gpu("A100", 312.0, 2.0),
    Gpu("H100 PCIe", 756.0, 2.0),
    Gpu("H100 NVL", 835.5, 3.9),
    Gpu("H100", 989.4, 3.35),
    Gpu("H200 NVL", 835.5, 4.8),
    Gpu("H200", 989.4, 4.8),
    Gpu("B200", 2250.0, 8.0),
    Gpu("GB200", 2500.0, 8.0),
)
"""From NVIDIA's data sheets of each (where they print the rate with sparsity, half of it) and, for the RTX cards, the white
papers of the GA102, Ada and Blackwell architectures; A10G from AWS's description of G5 instances. H100 and H200 are the SXM
modules, RTX PRO 6000 the 600 W workstation card."""

SHOWN_GPUS = ("A10G", "RTX 4090", "A100", "H100")
"""The ones an estimate of hours names: a cloud's small one, a desk's, and two of a data centre."""

MEMORY_SIZES = (24, 40, 80)
"""GPU memories that an estimate is compared with, in GB."""


@dataclass(frozen=True)
class Flops:
    """What the FLOPs of a model depend on."""

    frozen: int
    """Weights of linear layers that every token passes and that are not trained."""
    trained: int
    """Those that are: an adapter's, or all."""
    head: int
    """Weights of the output layer, which only learned tokens pass."""
    head_is_trained: bool
    attention: int
    """Layers x heads x head size."""

    def of_steps(
        self, tokens: npt.NDArray[np.int64], learned: npt.NDArray[np.int64], squares: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float64]:
        """Return the FLOPs of steps by their tokens, learned tokens, and sum of squared view lengths; each (num_steps,).

        A multiply-add is 2 FLOPs; a weight costs one forwards, one backwards for the input's gradient, and one for its own
        gradient if it is trained: 4 or 6 a token. Attention costs 12 x layers x heads x head size x length a token
        (Chowdhery et al., "PaLM", 2022, appendix B), length being the view's, since views in a row do not see each
        other. Nothing is counted for what is only recomputed (gradient checkpointing), nor for padding.
        """
        per_token, per_learned = 4 * self.frozen + 6 * self.trained, (6 if self.head_is_trained else 4) * self.head
        counts = np.array([per_token, per_learned, 12 * self.attention], np.float64)
        return counts @ np.stack([tokens, learned, squares]).astype(np.float64)


def peak_flops(device_name: str) -> float | None:
    """Return the peak FLOPs per second of a device by the name its driver gives it.

    None if it is not in the table, or only a part of one that is (MIG), or a slower one for laptops.
    """
    words = _words(device_name)
    for gpu in sorted(GPUS, key=lambda gpu: -len(gpu.name)):
        if _words(gpu.name) <= words and not words & {"MIG", "LAPTOP"}:
            return gpu.tflops * 1e12
    return None


def _words(name: str) -> set[str]:
    return set(name.replace("-", " ").upper().split())


MATMUL_MFU = 0.6
"""Share of a GPU's peak that its matrix products reach by themselves."""

H100_MFU = ((135e6, 0.13), (0.5e9, 0.19), (1.5e9, 0.25), (7e9, 0.37))
"""Parameters of a model, and the MFU of training LoRA on all its linear layers on an H100: the first two were measured on
2026-11-26 (rows of 8,192 tokens, four at once, layers not compiled), the others keep their share, nine tenths, of what memory
traffic lets them reach."""


def expected_mfu(parameters: int, gpu: Gpu) -> float:
    """Return the share of a GPU's peak that an estimate of hours reckons with; a run's own is its metric `train/mfu`.

    What an H100 loses beyond its matrix products it loses to memory traffic, and to more of it the smaller the model is:
    other GPUs lose by the ratio of their peak to their bandwidth. A model below the least is taken for as large as that.
    """
    sizes, mfus = np.array(H100_MFU).T
    h100 = next(gpu for gpu in GPUS if gpu.name == "H100")
    traffic = 1 / np.interp(np.log(parameters), np.log(sizes), mfus) - 1 / MATMUL_MFU
    return float(1 / (1 / MATMUL_MFU + traffic * (gpu.tflops / gpu.bandwidth) / (h100.tflops / h100.bandwidth)))


def hours(flops: float, gpu: Gpu, num_workers: int, mfu: float) -> float:
    """Return how long this many FLOPs take on this many GPUs."""
    return flops / (gpu.tflops * 1e12 * mfu * num_workers) / 3600
