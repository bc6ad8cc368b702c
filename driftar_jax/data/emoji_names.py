r"""Writes the captions of `emoji32`: the Unicode names of an emoji's code points and its class.

python -m driftar_jax.data.emoji_names > driftar_jax/data/embedded/emoji32_captions.txt

The table is kept in the package, for Python's own names grow from version to version.
"""

import unicodedata

import numpy as np

from driftar_jax.data import embedded

# Names that are younger than Unicode 14, the version of Python 3.11.
YOUNG = {
    0x1F6DC: "WIRELESS",
    0x1FA75: "LIGHT BLUE HEART",
    0x1FA76: "GREY HEART",
    0x1FA77: "PINK HEART",
    0x1FA8F: "SHOVEL",
    0x1FAAD: "FOLDING HAND FAN",
    0x1FAAE: "HAIR PICK",
    0x1FABD: "WING",
    0x1FABF: "GOOSE",
    0x1FACE: "MOOSE",
    0x1FACF: "DONKEY",
    0x1FADF: "SPLATTER",
    0x1FAF7: "LEFTWARDS PUSHING HAND",
    0x1FAF8: "RIGHTWARDS PUSHING HAND",
}
# What joins code points or chooses a style, and the end of a sequence of tags.
_SILENT = {0x200D, 0xFE0F, 0xE007F}
# Skin tones in Fitzpatrick's types, as Unicode names them.
_SKIN = {0x1F3FB: "1 2", 0x1F3FC: "3", 0x1F3FD: "4", 0x1F3FE: "5", 0x1F3FF: "6"}
_LETTERS = ("REGIONAL INDICATOR SYMBOL ", "TAG LATIN SMALL ")


def words(code: int) -> str:
    """Return a code point in small letters; nothing for one that only joins others."""
    if code in _SILENT:
        return ""
    if code in _SKIN:
        return f"skin {_SKIN[code]}"
    name = YOUNG.get(code) or unicodedata.name(chr(code))
    for prefix in (*_LETTERS, "EMOJI COMPONENT "):
        name = name.removeprefix(prefix)
    return name.lower().replace("-", " ")


def caption(code: str, subgroup: str) -> str:
    """Return `"monkey face, animal mammal"` of `"1f435"` and its class."""
    parts = [words(int(point, 16)) for point in code.split("-")]
    kind = subgroup.replace("-", " ").replace("&", "and")
    return f"{' '.join(filter(None, parts))}, {kind}"


def main() -> None:
    """Print `code<TAB>caption` of every emoji of the embedded set."""
    with np.load(embedded.FOLDER / "emoji32.npz", allow_pickle=False) as arrays:
        codes, classes = arrays["code"].tolist(), arrays["names"][arrays["label"]].tolist()
    texts = {code: caption(code, name) for code, name in zip(codes, classes, strict=True)}
    for code, text in sorted(texts.items()):
        print(f"{code}\t{text}")


if __name__ == "__main__":
    main()
