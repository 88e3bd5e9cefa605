"""Trained models to folders that `families.loading.load_model` opens, compared with the model in memory before they
count."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unidetox_ray.errors import ModelError, StageError

#: Below a model's folder: the peft adapter that was merged into it.
ADAPTER = "adapter"


def save_model(
    engine: Any,
    model: Any,
    tokenizer: Any,
    folder: Path,
    prompts: list[list[int]],
    rank: int,
    *,
    adapter: Mapping[str, Any] | None = None,
    base: Mapping[str, Any] | None = None,
) -> None:
    """Consolidated safetensors, compared with the model in memory before they count.

    adapter: its settings. kind "lora": merged here, and where `keep` names the base model also left as a peft adapter in the
    folder `adapter`; kind "bottleneck": saved without the weights of `base` (path, revision, key, name of the model that was
    adapted). All but "bottleneck" open with `from_pretrained`.
    """
    import torch

    engine.module.eval()
    logits = []
    with torch.inference_mode():
        for ids in prompts:
            given = torch.tensor([ids], device=engine.device)
            logits.append(engine.module(input_ids=given, use_cache=False).logits.float().cpu())
    stage3 = engine.zero_optimization_partition_weights()
    state = engine._zero3_consolidated_16bit_state_dict() if stage3 else None
    if rank != 0:
        return
    module = engine.module
    kind = None if adapter is None else adapter["kind"]
    if kind == "bottleneck":
        from unidetox_ray.families import bottleneck

        assert base is not None, "adapters are nothing without their model"
        bottleneck.save(folder, module, module.state_dict() if state is None else state, base)
    else:
        if kind == "lora":
            if adapter is not None and adapter.get("keep"):
                module.peft_config["default"].base_model_name_or_path = adapter["keep"]
                module.save_pretrained(folder / ADAPTER)
            module, state = module.merge_and_unload(), None
        module.save_pretrained(folder, state_dict=state)
    tokenizer.save_pretrained(folder)
    check_saved(folder, module, prompts, logits, merged=kind == "lora")


def check_saved(
    folder: Path, module: Any, prompts: list[list[int]], logits: list[Any], *, merged: bool = False
) -> None:
    """StageError unless the folder reopens to the same model: same keys, finite values, same logits on two prompts."""
    import torch

    from unidetox_ray.families.loading import load_model

    dtype = str(next(module.parameters()).dtype).removeprefix("torch.")
    try:
        reopened = load_model(str(folder), dtype=dtype, device="cpu")
    except ModelError as error:  # ours, not the user's: we have just saved it
        raise StageError(f"{folder}: the saved model cannot be opened again: {error}") from None
    expected, found = set(module.state_dict()), set(reopened.state_dict())
    if expected != found:
        raise StageError(f"{folder}: saved weights lack or add tensors: {sorted(expected ^ found)[:4]}")
    for name, tensor in reopened.named_parameters():  # a buffer may hold a limit that is infinite
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise StageError(f"{folder}: {name} holds values that are not finite")
    low_precision = next(module.parameters()).dtype != torch.float32
    tolerance = 0.25 if low_precision else (1e-3 if merged else 1e-4)
    with torch.inference_mode():
        for ids, before in zip(prompts, logits, strict=True):
            after = reopened.eval()(input_ids=torch.tensor([ids]), use_cache=False).logits.float()
            gap = float((after - before).abs().max())
            if not gap <= tolerance:
                raise StageError(
                    f"{folder}: reopened logits differ by {gap:.3g} from the trained model's (accepted: {tolerance:g})"
                )
