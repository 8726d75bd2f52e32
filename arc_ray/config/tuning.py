"""Test-time training: what a checkpoint may learn from the shown pairs of the task that it is about to answer."""

from typing import Literal

from pydantic import Field

from arc_ray.config.section import Section


class TttConfig(Section):
    """Test-time training, one adapter a task; what has no key here (clip, betas, row_tokens, micro_rows) is `train`'s.

    Published recipes: 250 views in 2 epochs of batch 2 at 5e-5 to 1e-4 (Akyürek et al., arXiv 2411.07279); 300 steps of
    batch 1 at 8e-5 (ironbar, ARC24); 8 epochs over 8 symmetries at 1e-4 (Franzen et al., "Product of Experts", 2025).
    """

    steps: int = Field(default=128, ge=1)
    """Optimizer steps per task."""
    views_per_step: int = Field(default=2, ge=1)
    """Leave-one-out views per step: each asks for one shown pair and shows others."""
    lr: float = Field(default=1e-4, gt=0)
    """Peak learning rate; `train.schedule` and `train.warmup` shape it."""
    adapter: Literal["continue", "new"] = "continue"
    """Continue the checkpoint's adapter, or put a new LoRA (model.lora) on the merged model; a whole model gets a new one."""
    symmetries: bool | None = None
    """Turn and mirror each view by one of the 8 symmetries; null does as `view` says."""
    colors: Literal["permute", "keep"] | None = None
    """Rename colours in each view; null does as `view` says."""
    num_workers: int | None = Field(default=None, ge=1)
    """Tasks tuned at the same time; null takes what the cluster has room for."""
    gpus: float = Field(default=1.0, gt=0, le=1)
    """Share of a GPU for each worker, where scaling.use_gpu: 0.5 tunes two tasks on one GPU."""
    budget_seconds: float | None = Field(default=None, gt=0)
    """Wall-clock seconds for all tasks of an evaluation together; tasks that are not done by then keep the answers of the
    untuned model. null has no limit."""
    retries: int = Field(default=2, ge=0)
    """Further attempts at a task whose worker was lost or failed; after them it keeps its untuned answers."""
