"""Pictures laid out as the official evaluators read them, written as they are made.

    OUT/manifest.json   what was asked, and of what; written first, completed last
    OUT/images/...      the pictures and nothing else, in the evaluator's own names
    OUT/samples.npz     `adm`: the pictures once more, as its evaluator wants them

| layout | pictures | read by |
|---|---|---|
| flat | `00000_class3.png`, or `00000.png`, in OUT itself, beside `grid.png` | eyes |
| folder | the same names in `images` | clean-fid |
| torch_fidelity | `00000.png`, RGB | torch-fidelity and its forks |
| adm | as torch_fidelity, and `arr_0` uint8 `[n, H, W, 3]`, shuffled | ADM, which takes chunks |
| geneval | `00000/samples/0000.png` to `0003.png`, `00000/metadata.jsonl` | GenEval |
| dpg | `ID.png`, 2 x 2 pictures without a gap | DPG-Bench |
| mjhq | `CATEGORY/ID.png` | MJHQ-30K |

Every file appears whole, under its last name, so that a command that was stopped goes on with the
pictures that are missing.
"""

import hashlib
import json
import os
import pathlib
import time
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from driftar_jax.config import wrong
from driftar_jax.data import prompt_files
from driftar_jax.storage.jsons import read_json, write_json

NAMES = ("flat", "folder", "torch_fidelity", "adm", "geneval", "dpg", "mjhq")
ROUNDING = "round(255 x), clipped to 0..255"
PER_PROMPT = {"geneval": 4, "dpg": 4}
_KINDS = {"geneval": "jsonl", "dpg": "folder", "mjhq": "table"}
_CALLED = {
    "jsonl": "lines of JSON with prompt (evaluation_metadata.jsonl)",
    "folder": "a folder of ID.txt (prompts/)",
    "table": "a JSON file of id to category and prompt (meta_data.json)",
}
_AS_THEY_ARE = ("flat", "folder")  # grey stays grey, and names may hold the class
_SHUFFLE = 2020
_PNG_END = b"IEND\xaeB`\x82"  # the last bytes of every whole PNG
_TILES = 2  # of a side of a picture of DPG-Bench
MANIFEST = "manifest.json"
# What commands that were killed leave.
_CUT_OFF = (".*.png.*", ".samples.npz.*", f".{MANIFEST}.tmp*")
PATIENCE = 1800  # seconds in which other processes show that they are there


class NotThere(RuntimeError):
    """Pictures of other processes did not come."""


class Layout:
    """Place the pictures of one command, by number: picture `i` is `i % per_prompt` of its prompt.

    Attributes:
      name: of `NAMES`.
      count: pictures in all.
      per_prompt: pictures of a prompt, one after the other.
    """

    def __init__(
        self,
        name: str,
        out: str | os.PathLike,
        *,
        count: int | None = None,
        labels: Sequence[str] | None = None,
        prompts: prompt_files.Prompts | None = None,
    ):
        """Nothing is written yet.

        Args:
          name: of `NAMES`.
          out: folder of all that is written.
          count: pictures in all; with prompts their number times `per_prompt`.
          labels: a word for the class of each picture, for the names of `flat` and `folder`.
          prompts: what pictures are made from; three layouts need a file of their own kind.

        Raises:
          ValueError: an unknown layout, or one without its kind of prompts.
        """
        if name not in NAMES:
            raise wrong("layout", name, " | ".join(NAMES))
        kind = _KINDS.get(name)
        if kind and (prompts is None or prompts.kind != kind):
            raise wrong("layout", name, f"--prompts=FILE with {_CALLED[kind]}")
        self.name, self._labels, self._prompts = name, labels, prompts
        self.per_prompt = PER_PROMPT.get(name, 1)
        self.count = len(prompts.items) * self.per_prompt if prompts else int(count)
        self._out = pathlib.Path(out)
        self._images = self._out if name == "flat" else self._out / "images"
        # Pictures that one file holds.
        self._unit = _TILES**2 if name == "dpg" else 1
        self._waiting: dict[int, dict[int, np.ndarray]] = {}
        self._size: tuple[int, ...] | None = None

    def prompt(self, number: int) -> str:
        """Return the text of a picture."""
        return self._prompts.items[number // self.per_prompt].text

    def begin(self, facts: dict[str, Any], leads: bool = True) -> None:
        """Make the folder, or make sure that it is of the same command.

        Args:
          facts: what the pictures follow from, JSON-able: checkpoint, settings, seed.
          leads: False for all but one of several processes: they wait until that one has made it.

        Raises:
          ValueError: the folder holds something else, or pictures of another command.
        """
        wanted = json.loads(json.dumps(facts | self._facts()))
        path = self._out / MANIFEST
        until = time.monotonic() + PATIENCE
        while not leads and not path.exists():
            if time.monotonic() > until:
                allowed = f"one that process 0 begins within {PATIENCE} s"
                raise wrong("out", str(self._out), allowed)
            time.sleep(0.2)
        if path.exists():
            there = read_json("out", path, "the manifest of such a command")
            for field, value in wanted.items():
                if there.get(field) != value:
                    then = f"{field} {there.get(field)!r}, as its manifest says, not {value!r}"
                    raise wrong("out", str(self._out), f"a new folder, or the same command: {then}")
        elif self._out.exists() and (not self._out.is_dir() or any(self._out.iterdir())):
            raise wrong("out", str(self._out), "a new or empty folder, or one of the same command")
        self._out.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_json(path, wanted | {"complete": False})
        self._images.mkdir(exist_ok=True)

    def missing(self, process_index: int = 0, process_count: int = 1) -> list[int]:
        """Return numbers of the pictures that are not there yet, in order.

        Of several processes each is given the files whose number it is, so that all write at once.
        """
        units = range(process_index, self.count // self._unit, process_count)
        lacking = [u for u in units if not _is_whole(self._file(u * self._unit))]
        return [u * self._unit + k for u in lacking for k in range(self._unit)]

    def write(self, number: int, image: np.ndarray) -> None:
        """Take picture `number`, uint8 `[H, W, 1 or 3]`.

        Raises:
          ValueError: it is of another size than those before it.
        """
        self._size = self._size or image.shape
        if image.shape != self._size or image.dtype != np.uint8:
            got = f"{image.dtype} {list(image.shape)}"
            raise ValueError(f"image: got {got}, allowed uint8 {list(self._size)}")
        if self._unit == 1:
            self._save(number, image)
            return
        tiles = self._waiting.setdefault(number // self._unit, {})
        tiles[number % self._unit] = image
        if len(tiles) == self._unit:
            del self._waiting[number // self._unit]
            rows = [
                np.concatenate([tiles[r * _TILES + c] for c in range(_TILES)], axis=1)
                for r in range(_TILES)
            ]
            self._save(number, np.concatenate(rows, axis=0))

    def wait(self) -> None:
        """Wait for the pictures of other processes.

        Raises:
          NotThere: some are missing, and for a long time no new one has come.
        """
        lacking, since = self.missing(), time.monotonic()
        while lacking:
            time.sleep(0.5)
            if (
                now := [number for number in lacking if not _is_whole(self._file(number))]
            ) != lacking:
                lacking, since = now, time.monotonic()
            if time.monotonic() > since + PATIENCE:
                raise NotThere(
                    f"out: got no picture of another process in {PATIENCE} s, allowed "
                    f"{len(lacking)} more: the same command with --num_processes=1 makes them"
                )

    def finish(self) -> None:
        """Write what needs all pictures, and say in the manifest that they are complete.

        Raises:
          ValueError: some are missing.
        """
        if lacking := self.missing():
            raise ValueError(f"out: got {len(lacking)} pictures fewer, allowed {self.count}")
        for pattern in _CUT_OFF:
            for path in self._out.glob(pattern):
                path.unlink()
        if self.name == "geneval":
            for number in range(0, self.count, self.per_prompt):
                item = self._prompts.items[number // self.per_prompt]
                write_json(self._file(number).parents[1] / "metadata.jsonl", item.facts)
        if self.name == "adm":
            self._pack()
        manifest = read_json("out", self._out / MANIFEST, "the manifest of such a command")
        with Image.open(self._file(0)) as picture:
            size = [side // (_TILES if self._unit > 1 else 1) for side in picture.size[::-1]]
        write_json(self._out / MANIFEST, manifest | {"size": size, "complete": True})

    def first(self, most: int) -> np.ndarray:
        """Read the first pictures back: uint8 `[k, H, W, C]`."""
        images = []
        for number in range(min(most, self.count)):
            with Image.open(self._file(number)) as picture:
                image = np.asarray(picture)
            if self._unit > 1:
                row, column = divmod(number % self._unit, _TILES)
                height, width = (side // _TILES for side in image.shape[:2])
                image = image[row * height :, column * width :][:height, :width]
            images.append(image if image.ndim == 3 else image[..., None])
        return np.stack(images)

    def _facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "layout": self.name,
            "count": self.count,
            "per_prompt": self.per_prompt,
            "uint8": ROUNDING,
        }
        if self.name == "adm":
            facts["order"] = f"row k of arr_0 is picture permutation[k], PCG64 seed {_SHUFFLE}"
        if self._prompts:
            facts["prompts"] = {"count": len(self._prompts.items), "sha256": self._prompts.digest}
        if self._labels is not None:
            named = ",".join(map(str, self._labels)).encode()
            facts["labels_sha256"] = hashlib.sha256(named).hexdigest()
        return facts

    def _file(self, number: int) -> pathlib.Path:
        """The file that holds picture `number`."""
        if self.name in _KINDS:
            item = self._prompts.items[number // self.per_prompt]
            if self.name == "geneval":
                return self._images / item.key / "samples" / f"{number % self.per_prompt:04d}.png"
            below = item.facts.get("category", "") if self.name == "mjhq" else ""
            return self._images / below / f"{item.key}.png"
        if self.name in _AS_THEY_ARE and self._labels is not None:
            return self._images / f"{number:05d}_{self._labels[number]}.png"
        return self._images / f"{number:05d}.png"

    def _save(self, number: int, image: np.ndarray) -> None:
        path = self._file(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.name not in _AS_THEY_ARE and image.shape[-1] == 1:
            # Evaluators read three channels, of grey pictures too.
            image = np.repeat(image, 3, axis=-1)
        picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        # Beside the folder that evaluators list, where a file that was cut off does no harm.
        unfinished = self._out / f".{path.name}.{os.getpid()}"
        picture.save(unfinished, "PNG")
        os.replace(unfinished, path)

    def _pack(self) -> None:
        """`samples.npz` from the files, a picture at a time."""
        with Image.open(self._file(0)) as picture:
            width, height = picture.size
        shape = (self.count, height, width, 3)
        unfinished = self._out / f".samples.npz.{os.getpid()}"
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        order = np.random.default_rng(_SHUFFLE).permutation(self.count)
        with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            # Without a time of its own, so that the same pictures give the same bytes.
            info = zipfile.ZipInfo("arr_0.npy")
            with archive.open(info, "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                for number in order.tolist():
                    with Image.open(self._file(number)) as picture:
                        member.write(np.asarray(picture.convert("RGB"), np.uint8).tobytes())
        os.replace(unfinished, self._out / "samples.npz")


def _is_whole(path: pathlib.Path) -> bool:
    """Whether a picture is there to its end: a copy of a folder, or a full disk, may cut it off."""
    try:
        with open(path, "rb") as file:
            if file.seek(0, os.SEEK_END) <= len(_PNG_END):
                return False
            file.seek(-len(_PNG_END), os.SEEK_END)
            return file.read() == _PNG_END
    except OSError:
        return False
