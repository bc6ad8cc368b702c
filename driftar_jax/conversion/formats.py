"""What a file or folder is that is no checkpoint of ours: its name, and what to do with it."""

import pathlib
from collections.abc import Iterable

from driftar_jax.storage import reasons

_ARCHIVE = "an archive: unpack it and give the file inside"
# How files begin that are met in place of weights.
_BEGINNINGS = (
    *reasons.BEGINNINGS,
    (b"\x1f\x8b", _ARCHIVE),
    (b"BZh", _ARCHIVE),
    (b"\xfd7zXZ", _ARCHIVE),
    (b"7z\xbc\xaf", _ARCHIVE),
    (b"Rar!", _ARCHIVE),
    (b"\x28\xb5\x2f\xfd", _ARCHIVE),
    (b"\x93NUMPY", "an array of NumPy, not a checkpoint of names"),
    (b"\x89HDF", "an HDF5 file of Keras or MATLAB: give the release's PyTorch or safetensors file"),
    (b"GGUF", "a GGUF file, whose numbers are coarse: give the release it was made of"),
)
_DEEPSPEED = (
    "a checkpoint of DeepSpeed, in parts: run `python zero_to_fp32.py . weights.pth` in it and "
    "give weights.pth"
)
_DCP = (
    "a distributed checkpoint of PyTorch (DCP, FSDP), in parts: run `python -m "
    "torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER weights.pth` and give that"
)
_DIFFUSERS = (
    "the layout of the library diffusers, whose names are its own: give the file of the model's "
    "own release"
)
_WORKDIR = "a workdir of this project: it needs no conversion (--back writes official names)"
_BIN = (
    "PyTorch files in parts with an index of transformers: give the release's safetensors, or one "
    "file with all of them"
)
_MSGPACK = "Flax weights of transformers: give the release's PyTorch or safetensors file"
_TENSORFLOW = "a TensorFlow checkpoint: give the release's PyTorch or safetensors file"
_MEGATRON = "a checkpoint of Megatron, in parts: merge them with its own tools and give that file"
_LORA = "changes to a model (LoRA), not the model: merge them into it first"
_ORBAX = "an Orbax checkpoint of another program: give the release's PyTorch or safetensors file"
_RUNTIME = "a model made for another runtime: give the release that it was made of"
_PARTLY = "a download that was not finished: go on with it, or begin it anew"
# What endings say of a file that is no checkpoint.
_ENDINGS = {
    **dict.fromkeys((".onnx", ".tflite", ".mlmodel", ".engine", ".plan", ".trt", ".pte"), _RUNTIME),
    **dict.fromkeys((".part", ".crdownload", ".aria2", ".incomplete", ".download"), _PARTLY),
    **dict.fromkeys((".pb", ".index", ".meta"), _TENSORFLOW),
    **dict.fromkeys((".gguf", ".ggml"), "weights made coarse: give the release of which they are"),
    **dict.fromkeys((".zip", ".tar", ".tgz"), _ARCHIVE),
    ".msgpack": _MSGPACK,
    ".keras": "a file of Keras: give the release's PyTorch or safetensors file",
    ".npz": "arrays of NumPy: give the release's PyTorch or safetensors file",
    ".dvc": "a pointer of DVC, not the file itself: fetch it with `dvc pull`",
}
_TEXT = bytes([*range(32, 127), *b"\t\r\n"])
# Files that tell what a folder is; the first that is found counts.
_MARKS = (
    ("checkpoints", _WORKDIR),
    ("model_index.json", _DIFFUSERS),
    ("diffusion_pytorch_model*", _DIFFUSERS),
    ("scheduler_config.json", _DIFFUSERS),
    ("zero_to_fp32.py", _DEEPSPEED),
    ("*zero_pp_rank_*", _DEEPSPEED),
    ("*/*zero_pp_rank_*", _DEEPSPEED),
    ("latest_checkpointed_iteration.txt", _MEGATRON),
    ("model_optim_rng.pt", _MEGATRON),
    ("*/model_optim_rng.pt", _MEGATRON),
    ("mp_rank_*", _DEEPSPEED),
    ("*/mp_rank_*", _DEEPSPEED),
    (".metadata", _DCP),
    ("*.distcp", _DCP),
    ("*/*.distcp", _DCP),
    ("pytorch_model*.bin.index.json", _BIN),
    ("*-of-*.bin", _BIN),
    ("adapter_config.json", _LORA),
    ("*manifest.ocdbt", _ORBAX),
    ("*/manifest.ocdbt", _ORBAX),
    ("_CHECKPOINT_METADATA", _ORBAX),
    ("snapshots/*/*", "a cache of the hub: give the folder below snapshots/ in it"),
    ("flax_model*", _MSGPACK),
    ("*.msgpack", _MSGPACK),
    ("saved_model.pb", _TENSORFLOW),
    ("*.ckpt.index", _TENSORFLOW),
)


def of_folder(folder: pathlib.Path) -> str | None:
    """Return what a folder without safetensors shards is, and what to do; None: nobody knows."""
    for pattern, meaning in _MARKS:
        if next(folder.glob(pattern), None) is not None:
            return meaning
    if next(folder.glob("*-of-*.safetensors"), None) is not None:
        return "shards with no model.safetensors.index.json: copy it beside them"
    files = sorted(p.name for p in folder.iterdir() if p.suffix in (".pth", ".pt", ".ckpt", ".bin"))
    files += sorted(p.name for p in folder.glob("*.safetensors"))
    if files:
        return f"a folder of files: give one of them ({', '.join(files[:3])})"
    if (folder / ".git").exists():
        return "a clone without weights in it: fetch them with `git lfs pull`"
    return next(filter(None, map(of_name, sorted(folder.iterdir()))), None)


def of_name(path: pathlib.Path) -> str | None:
    """Say what a file is that could not be read, by its ending; None: nobody knows."""
    if ".ckpt.data-" in path.name:
        return _TENSORFLOW
    return _ENDINGS.get(path.suffix.lower())


def of_file(path: pathlib.Path, *, text: bool = False) -> str | None:
    """Return what a file is that stands in the place of one of a checkpoint, and what to do.

    None: it may be one, or is absent. `text` says that it is to be a text, such as a config.
    """
    for mark, meaning in (("zero_pp_rank_", _DEEPSPEED), (".distcp", _DCP)):
        if mark in path.name:
            return meaning
    if path.name.endswith((".index.json", ".bin.index")):
        return "an index: give the folder that it lies in"
    try:
        with open(path, "rb") as file:
            head = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")
    except OSError:
        return None
    if head[8:9] == b"{":
        return None  # safetensors: before it stands a number, of any bytes
    if head[4:8] == b"TFL3":
        return _RUNTIME
    known = reasons.of_head(head, _BEGINNINGS)
    if known is None and not text and len(head) > 1 and not head.strip(_TEXT):
        # What a server or a tool said in the place of the file.
        return f"a text that begins {' '.join(head.decode().split())[:40]!r}, not the file"
    return known


# Parts of names that tell how a file was made.
_NAMES = (
    (("down_blocks.", "up_blocks.", "mid_block.", "transformer_blocks."), _DIFFUSERS),
    (
        ("weight_scale", "scale_inv", "scale_weight", "input_scale", "scaled_fp8"),
        "scaled float8 of another program: give the release that it was made of",
    ),
    (
        (".qweight", ".absmax", ".quant_map", ".SCB", ".qzeros"),
        "weights made coarse by another program: give the release that they were made of",
    ),
    (("lora_", ".alpha"), _LORA),
)


def check_names(source: str, names: Iterable[str]) -> None:
    """Refuse names that show another program's layout.

    Raises:
      ValueError: one line.
    """
    names = list(names)
    for parts, meaning in _NAMES:
        if any(part in name for name in names for part in parts):
            raise ValueError(f"source: got {source!r}, allowed the official names ({meaning})")


def is_safetensors(path: pathlib.Path) -> bool:
    """Say whether a file is to be read as safetensors: by what it begins with, else by its name."""
    try:
        with open(path, "rb") as file:
            head = file.read(9)
    except OSError:
        return path.suffix == ".safetensors"
    # A program of PyTorch's pickles begins with \x80, a zip file with PK.
    return head[8:] == b"{" or (
        path.suffix == ".safetensors" and head[:2] not in (b"\x80\x02", b"PK")
    )
