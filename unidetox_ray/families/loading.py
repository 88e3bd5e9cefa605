"""Opening models and tokenizers by folder or hub id, with one-line errors, and what their special tokens are."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unidetox_ray import registry
from unidetox_ray.errors import ModelError
from unidetox_ray.families.base import Family, SpecialIds
from unidetox_ray.families.bottleneck import is_bottleneck, open_adapted
from unidetox_ray.secrecy import hub_token

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# transformers 5 otherwise starts a thread that asks the hub to convert .bin weights; we refuse those instead.
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")

#: Standard names of linear layers, for a family that no file here describes; `families.targets` looks into the model.
_COMMON_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
#: Where attention and feed-forward end in the library's other architectures (GPT-NeoX, GPT-J, BLOOM, Phi, MPT, XGLM …).
_COMMON_SUBLAYERS = (
    r".*\.(?:self_attn|attn|attention|self_attention|linear_attn)\.(?:o_proj|out_proj|c_proj|dense|Wo)",
    r".*\.attn\.attention\.out_proj",
    r".*\.norm_attn_norm\.attn\.out_proj",
    r".*\.(?:mlp|ffn|feed_forward)\.(?:down_proj|c_proj|fc2|fc_out|dense_4h_to_h|w2|Wo)",
    r".*\.layers\.\d+\.fc2",
    r".*\.mixer\.(?:o_proj|down_proj)",
    r".*\.layer\.\d+\.(?:attention\.)?output\.dense",
)


def load_tokenizer(path_or_id: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub id. ModelError when there is none, it is damaged or gated, or needs remote code."""
    from transformers import AutoTokenizer

    _check_folder(path_or_id)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            path_or_id, revision=revision, trust_remote_code=False, token=hub_token()
        )
        known = bool(tokenizer("The word", add_special_tokens=False)["input_ids"])
        # BERT's makes an unknown token of each word.
        known &= len(tokenizer) > len(set(tokenizer.all_special_ids))
    except Exception as error:  # what the tokenizers library raises for a damaged file is a bare Exception
        raise explained(error, path_or_id, "tokenizer") from error
    if not known:  # where the files lack, transformers makes an empty one
        raise ModelError(
            f"tokenizer {path_or_id}: knows no words; put the tokenizer's files (tokenizer.json …) beside the model's"
        )
    return tokenizer


def load_model(
    path_or_id: str,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    revision: str | None = None,
    random_weights_config: PretrainedConfig | None = None,
) -> PreTrainedModel:
    """A causal language model from safetensors, in training mode off.

    dtype: "float32", "bfloat16", "float16" or "auto" (as stored). random_weights_config: build this config with
    random weights instead of reading any (dry runs). A folder of bottleneck adapters (`families.bottleneck`) opens as
    its base model with them. ModelError: missing, damaged, gated, remote code, .bin only, weights that lack a tensor,
    or a tokenizer with more tokens than the embedding has rows.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if dtype not in ("float32", "bfloat16", "float16", "auto"):
        raise ModelError(f"dtype {dtype!r} is not known; accepted: auto, bfloat16, float16, float32")
    chosen = dtype if dtype == "auto" else getattr(torch, dtype)
    if random_weights_config is not None:
        model = AutoModelForCausalLM.from_config(
            random_weights_config, dtype=None if dtype == "auto" else chosen
        )
        return model.eval().to(device)  # type: ignore[arg-type]
    _check_folder(path_or_id)
    if is_bottleneck(path_or_id):
        adapted: PreTrainedModel = open_adapted(path_or_id, dtype=dtype, device=device)
        return adapted
    try:
        opened: Any = AutoModelForCausalLM.from_pretrained(
            path_or_id,
            revision=revision,
            dtype=chosen,
            trust_remote_code=False,
            use_safetensors=True,
            token=hub_token(),
            output_loading_info=True,
        )
    except Exception as error:  # damaged files raise nearly anything: SafetensorError, TypeError …
        raise explained(error, path_or_id, "model") from error
    model, found = opened
    _refuse_lacking(found["missing_keys"], path_or_id, "model")
    _check_embedding(model, path_or_id)
    return model.eval().to(device)  # type: ignore[arg-type]


def load_classifier(path_or_id: str, *, revision: str | None = None) -> Any:
    """A sequence classifier in float32 from safetensors, in training mode off.

    ModelError: missing, damaged, gated, remote code, .bin only, or weights without a trained head.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    _check_folder(path_or_id)
    try:
        opened: Any = AutoModelForSequenceClassification.from_pretrained(
            path_or_id,
            revision=revision,
            dtype=torch.float32,
            trust_remote_code=False,
            use_safetensors=True,
            token=hub_token(),
            output_loading_info=True,
        )
    except Exception as error:  # as above
        raise explained(error, path_or_id, "scorer") from error
    model, found = opened
    _refuse_lacking(found["missing_keys"], path_or_id, "scorer")
    return model.eval()


def _refuse_lacking(keys: Iterable[str], path_or_id: str, what: str) -> None:
    """Transformers fills what the weights lack with random numbers and warns; numbers from such a model mean nothing."""
    if lacking := sorted(keys):
        raise ModelError(
            f"{what} {path_or_id}: its weights lack {len(lacking)} tensors of its config ({', '.join(lacking[:2])} …); "
            "take weights and config.json from the same model"
        )


def load_config(path_or_id: str, revision: str | None = None) -> PretrainedConfig:
    """The config of a folder or hub id; ModelError when there is none, it is damaged or gated, or needs remote code."""
    from transformers import AutoConfig

    _check_folder(path_or_id)
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            path_or_id, revision=revision, trust_remote_code=False, token=hub_token()
        )
    except Exception as error:  # a damaged file raises nearly anything
        raise explained(error, path_or_id, "config") from error
    return config


def local_folder(path_or_id: str, revision: str | None = None, *, pickles: bool = False) -> Path:
    """The folder of a model: the one that is named, or the hub's files, fetched into the hub's cache where they lack.

    pickles: fetch .bin files instead of safetensors; nothing here opens them.
    """
    folder = Path(path_or_id).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    _check_folder(path_or_id)
    try:
        return Path(
            snapshot_download(
                path_or_id, revision=revision, token=hub_token(),
                allow_patterns=["*.json", "*.bin" if pickles else "*.safetensors", "*.model", "*.txt"],
            )
        )  # fmt: skip
    except Exception as error:  # the hub's and the network's own kinds
        raise explained(error, path_or_id, "model") from error


def special_ids(tokenizer: PreTrainedTokenizerBase, model_config: PretrainedConfig | None) -> SpecialIds:
    """Special ids by the tokenizer's own account; the config fills in an end token the tokenizer lacks.

    ModelError when there is neither a BOS nor an EOS to begin an unconditional text with.
    """
    bos, eos, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    if eos is None and model_config is not None:
        of_config = getattr(model_config, "eos_token_id", None)
        eos = of_config[0] if isinstance(of_config, list) else of_config
    start = bos if bos is not None else eos
    if start is None:
        raise ModelError(
            f"tokenizer {tokenizer.name_or_path or '(in memory)'}: has neither a BOS nor an EOS token, so no text can "
            "begin or end; set bos_token or eos_token in its tokenizer_config.json"
        )
    if pad is None:
        pad = eos if eos is not None else 0
    return SpecialIds(bos=bos, eos=eos, pad=pad, start=start)


def encode(
    tokenizer: PreTrainedTokenizerBase, text: str, *, bos: Literal["auto", "always", "never"] = "auto"
) -> list[int]:
    """Token ids of a text, no end token.

    bos "auto": a BOS where the real tokenizer puts one; "always": a start token before any text; "never": none.
    """
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    if bos == "never" or (bos == "auto" and not adds_bos(tokenizer)):
        return ids
    return [special_ids(tokenizer, None).start, *ids]


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer itself puts its BOS before a text."""
    first: list[int] = tokenizer("a")["input_ids"]
    return tokenizer.bos_token_id is not None and first[:1] == [tokenizer.bos_token_id]


def family_of(model_config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase | None = None) -> Family:
    """The registered family of a config, by model type; any other causal model gets one derived from its tokenizer."""
    kind = str(getattr(model_config, "model_type", "") or "unknown")
    for name in registry.names("families"):
        family: Family = registry.lookup("families", name)
        if family.model_type == kind:
            return family
    has_bos = tokenizer is None or tokenizer.bos_token_id is not None
    return Family(
        name=kind,
        hub_id=str(getattr(model_config, "_name_or_path", "") or kind),
        model_type=kind,
        adds_bos=tokenizer is not None and adds_bos(tokenizer),
        start_token="bos" if has_bos else "eos",
        adapter_targets=_COMMON_TARGETS,
        value_matrices=(r".*\.mlp\.down_proj\.weight",),
        sublayers=_COMMON_SUBLAYERS,
        licence="see the model's own card",
        tiny_config=None,
        train_tokenizer=None,
        published={},
    )


def offline_config(hub_id: str) -> PretrainedConfig:
    """The config of a registered family's hub checkpoint from its published shape: no network, no weights."""
    from transformers import AutoConfig

    known: dict[str, Family] = {}
    for name in registry.names("families"):
        family = registry.lookup("families", name)
        known[family.hub_id] = family
        known[family.hub_id.split("/")[-1]] = family
    if hub_id not in known:
        _check_folder(hub_id)
        raise ModelError(f"{hub_id}: its shape is not known offline; {registry.suggest(hub_id, known)}")
    return AutoConfig.for_model(known[hub_id].model_type, **known[hub_id].published)


def meta_parameters(config: PretrainedConfig) -> int:
    """Number of parameters of a config's model, tied ones once, without memory for any."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())


def _check_folder(path_or_id: str) -> None:
    path = Path(path_or_id).expanduser()
    if path_or_id.startswith((".", "/", "~")) and not path.is_dir():
        raise ModelError(
            f"{path_or_id}: no such folder; give a folder that `save_pretrained` wrote, or a hub id"
        )
    if path.is_dir() and not (path / "config.json").is_file() and not (path / "tokenizer.json").is_file():
        raise ModelError(f"{path_or_id}: holds no config.json; give a folder that `save_pretrained` wrote")
    if (path / "adapter_config.json").is_file():
        # Transformers would follow it to whatever base model it names, and leave the folder's own config aside.
        raise ModelError(
            f"{path_or_id}: holds adapter_config.json, an adapter that names another model; merge it into that model and give "
            "the merged folder"
        )


def _check_embedding(model: PreTrainedModel, path_or_id: str) -> None:
    """A tokenizer that lies beside the weights must not hold ids that the embedding lacks."""
    if not (Path(path_or_id).expanduser() / "tokenizer.json").is_file():
        return
    embedding: Any = model.get_input_embeddings()
    check_vocabulary(load_tokenizer(path_or_id), embedding.weight.shape[0], path_or_id)


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, rows: int, path_or_id: str) -> None:
    """ModelError for a tokenizer with more tokens than the embedding has rows; fewer are no hindrance."""
    if len(tokenizer) > rows:
        raise ModelError(
            f"{path_or_id}: the tokenizer has {len(tokenizer)} tokens but the embedding {rows} rows; "
            "take the tokenizer the model was trained with, or resize the embedding and train it"
        )


def _names_code(folder: Path) -> bool:
    """Whether a local tokenizer asks for a class of its repository, without which the files at hand are no tokenizer."""
    try:
        named = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        return "AutoTokenizer" in named.get("auto_map", {})
    except (OSError, ValueError, TypeError, AttributeError):
        return False


def _lost_shards(folder: Path) -> list[str]:
    """Files that a local folder's index names and that are not there."""
    try:
        index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
        return sorted(name for name in set(index["weight_map"].values()) if not (folder / name).is_file())
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return []


def explained(error: BaseException, path_or_id: str, what: str) -> ModelError:
    """One line: what is wrong and what to do. The token never stands in it."""
    chain = str(error)
    names: set[str] = set()
    cause: BaseException | None = error
    while cause is not None and len(names) < 10:
        names.add(type(cause).__name__)
        chain += " " + str(cause)
        cause = cause.__cause__ or cause.__context__
    low = chain.lower()
    if "GatedRepoError" in names or "gated repo" in low or "401 client" in low or "403 client" in low:
        return ModelError(
            f"{what} {path_or_id}: gated or private; accept its licence on the hub and set the variable HF_TOKEN"
        )
    folder = Path(path_or_id).expanduser()
    if any(words in low for words in ("trust_remote_code", "remote code", "custom code")) or (
        what == "tokenizer" and _names_code(folder)
    ):
        return ModelError(
            f"{what} {path_or_id}: needs code from its repository, which is never run; take another model"
        )
    only_pickle = folder.is_dir() and any(folder.glob("*.bin")) and not any(folder.glob("*.safetensors"))
    if what in ("model", "scorer") and (
        only_pickle or ("safetensors" in low and "does not appear to have" in low)
    ):
        return ModelError(
            f"{what} {path_or_id}: has no .safetensors weights, and .bin (pickle) files are not opened, for they can run code; "
            f"take a revision with safetensors, or run `unidetox convert {path_or_id} --out FOLDER --sha256 HASH` once"
        )
    lost = _lost_shards(folder)
    if lost:
        return ModelError(
            f"{what} {path_or_id}: model.safetensors.index.json names {lost[0]}, which is missing ({len(lost)} such); copy the "
            "folder again"
        )
    if "LocalEntryNotFoundError" in names or "OfflineModeIsEnabled" in names or "couldn't connect" in low:
        return ModelError(
            f"{what} {path_or_id}: the hub cannot be reached and no copy is cached; give a local folder"
        )
    if (
        "RepositoryNotFoundError" in names
        or "RevisionNotFoundError" in names
        or "not a valid model identifier" in low
    ):
        return ModelError(f"{what} {path_or_id}: not found on the hub; check the name and the revision")
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    first = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    if isinstance(error, (KeyError, TypeError, AttributeError)):  # their words alone say little
        first = f"{type(error).__name__}: {first}"
    advice = (
        "a file there is damaged or of another kind; copy the folder again"
        if folder.is_dir()
        else "give a model folder or a hub id"
    )
    return ModelError(f"{what} {path_or_id}: cannot be loaded ({first[:200]}); {advice}")
