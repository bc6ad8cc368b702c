"""The four small real image sets that come with the package, and what proves them intact.

Origins, changes and licences stand in `embedded/LICENSES.md`.
"""

import hashlib
import io
import pathlib
from collections.abc import Mapping

import numpy as np
from PIL import Image

FOLDER = pathlib.Path(__file__).parent / "embedded"

# sha256 of the file, then of the raw bytes of each array that `load` gives.
CHECKSUMS = {
    "digits8": {
        "file": "14a0ca17aaa1907c6fce49c285e16c939cd0b5b76b800c21d70ff8939303d8b3",
        "image": "c4bdc680ab5d04111f565ffc8882f36b48946a1bd9014929e938204bd72b928f",
        "label": "3a0e68456f9a3c609b399717dd9ca55bb9153be1bccf72e38e3319cb740c75cd",
        "test": "5c1efddbe8fd9fb58570ebe0c35d89372f077e9e999f7c1590cf3385236c2912",
        "names": "f277def3640132fee7d00b4738b95c550fbaa307fbfec9eb932c2cfe1dc2c91d",
    },
    "emoji32": {
        "file": "94395ebe4faaf034f862cc56b86b9df01b0f752b3e2a791feda2cbab8e3486e9",
        "image": "4118e13de0253be1c859e767641c2f230a348dc69a249ab05523ae16c1214bbe",
        "label": "065db5215ab40185c0504568efc5f4ea69bdfaf0e84923319448ccbb7fde2fca",
        "test": "60a87d37b6373acb41a2bfa9669954f7e7febd997898a9a0017b28425134434a",
        "names": "2b5bfc6b05b52e33c51334e10fd94de96c94b9fd01a851d14ea1c8c606b0f3b6",
    },
    "emoji64": {
        "file": "3c1f5b61480215ab1c82592f42298b21e53b4124b6afcff1c84090c257e9e166",
        "image": "a1bab97cfcd385ebe3dc4a60ae79475cbebc57311c0ba4ca284a5e35b13a1d57",
        "label": "7a2f067c40ec72ce4105b1cd34c282b4770a795a188a04d58d83fc1938f19088",
        "test": "ab26ce1121679fd649b0d3a6db86705219c40435a797520eeda8fc334cdbcb6e",
        "names": "48d837ff141cd492dbbbe12fbcebd0a7a16c60cc9d01b60994b6db38ab8c8821",
    },
    "fashion28": {
        "file": "e11306b3679f0d9a207335f72873b5c3dc6f5be5750dfcd0f1846ec04b089705",
        "image": "bbbd48fdac66bf87c107118baa7124a4e69d191fad0997a0df8f85e406fdd8f6",
        "label": "1ff8e48ab803bd39277f76a214fa285c9d19180f3592139550a5b7ac4d250952",
        "test": "235192ed7af3605c679707911e800bbfbd60ca5ca3f267ba56451d7bbebb71ac",
        "names": "fd6a2e96fe45d22b036311a05ca4d358d607aed48f76de9e1a37f57df7b868d7",
    },
}
NAMES = tuple(CHECKSUMS)
# Tables `code<TAB>caption`, written by `emoji_names.py`, for sets whose images have a `code`.
CAPTIONS = {"emoji32": "61211e47f1cae4db7c980aa730707a7d44e2dbc3e84db87574ff92b1e86f525f"}

# Sets whose captions stand in the file itself.
_WITH_CAPTIONS = ("emoji64",)


def load(name: str) -> dict[str, np.ndarray]:
    """Read the arrays of an embedded set, checked against `CHECKSUMS`.

    Returns:
      `image` uint8 `[N, H, W, C]`, `label` int32 `[N]`, `test` bool `[N]` (the held-out part),
      `names` str `[classes]`.

    Raises:
      ValueError: the file differs from the one that was released.
    """
    with np.load(_checked(name, ".npz", CHECKSUMS[name]["file"]), allow_pickle=False) as arrays:
        rest = {key: arrays[key] for key in ("label", "test", "names")}
        return {"image": arrays["image"] if "image" in arrays else _decoded(arrays), **rest}


def _decoded(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Pictures uint8 `[N, H, W, 3]` of a file that keeps them as WebP, each ending at its `end`."""
    data, ends = arrays["webp"].tobytes(), arrays["end"].tolist()
    begins = [0, *ends[:-1]]
    parts = (data[begin:end] for begin, end in zip(begins, ends, strict=True))
    return np.stack([np.asarray(Image.open(io.BytesIO(part)).convert("RGB")) for part in parts])


def has_captions(name: str) -> bool:
    """Say whether `captions` gives texts."""
    return name in CAPTIONS or name in _WITH_CAPTIONS


def captions(name: str) -> list[str] | None:
    """Return one text for each image of an embedded set, in the set's order; None: it has none.

    Raises:
      ValueError: a file differs from the one that was released.
    """
    if name in _WITH_CAPTIONS:
        with np.load(_checked(name, ".npz", CHECKSUMS[name]["file"])) as arrays:
            return arrays["caption"].tolist()
    if name not in CAPTIONS:
        return None
    table = _checked(name, "_captions.txt", CAPTIONS[name]).read_text(encoding="utf-8")
    texts = dict(line.split("\t") for line in table.splitlines())
    with np.load(_checked(name, ".npz", CHECKSUMS[name]["file"]), allow_pickle=False) as arrays:
        return [texts[code] for code in arrays["code"].tolist()]


def _checked(name: str, ending: str, want: str) -> pathlib.Path:
    path = FOLDER / f"{name}{ending}"
    # Other pictures under the same name would give figures that nobody could compare.
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != want:
        raise ValueError(
            f"data.name: got {name!r} whose file {path} has sha256 {digest[:12]}..., allowed "
            f"{want[:12]}...; install the package again"
        )
    return path
