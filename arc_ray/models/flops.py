"""FLOPs of a training step and what GPUs can do: hours before a run, MFU during it. Numbers only, no torch."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

ASSUMED_MFU = 0.4
"""Share of a GPU's peak that an estimate of hours reckons with; a run's own is in its metrics as `train/mfu`."""


@dataclass(frozen=True)
class Gpu:
    """A GPU as its maker describes it."""

    name: str
    gigabytes: int
    """Memory in units of 10^9 bytes, as it is sold."""
    tflops: float
    """Dense bfloat16 tensor-core peak with float32 accumulation (float16 on T4 and V100), in 10^12 per second."""


GPUS = (
    Gpu("T4", 16, 65.0),
    Gpu("V100", 32, 125.0),
    Gpu("RTX 3090", 24, 71.0),
    Gpu("RTX 4090", 24, 165.2),
    Gpu("A10G", 24, 70.0),
    Gpu("A10", 24, 125.0),
    Gpu("L4", 24, 121.0),
    Gpu("L40S", 48, 362.0),
    Gpu("A100", 80, 312.0),
    Gpu("H100 PCIe", 80, 756.0),
    Gpu("H100", 80, 989.4),
    Gpu("H200", 141, 989.4),
)
"""From NVIDIA's data sheets of each (where they print the rate with sparsity, half of it) and, for the RTX cards, the white
papers of the GA102 and Ada architectures; A10G from AWS's description of G5 instances. H100 is the SXM module."""

SHOWN_GPUS = ("A10G", "RTX 4090", "A100", "H100")
"""The ones an estimate of hours names: a cloud's small one, a desk's, and two of a data centre."""

MEMORY_SIZES = (24, 40, 80)
"""GPU memories that an estimate is compared with, in GB."""


@dataclass(frozen=True)
class Work:
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
    """Return the peak FLOPs per second of a device by the name its driver gives it; None if it is not in the table."""
    words = device_name.replace("-", " ").upper().split()
    for gpu in sorted(GPUS, key=lambda gpu: -len(gpu.name)):
        if all(word in words for word in gpu.name.upper().split()):
            return gpu.tflops * 1e12
    return None


def hours(flops: float, gpu: Gpu, num_workers: int, mfu: float = ASSUMED_MFU) -> float:
    """Return how long this many FLOPs take on this many GPUs."""
    return flops / (gpu.tflops * 1e12 * mfu * num_workers) / 3600
