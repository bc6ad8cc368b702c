"""The data room: image sets in, uint8 batches out. It knows neither hosts nor models.

Names of image sets say what kind they are.
"""

LATENTS = "latents:"
FOLDER, WEBDATASET, PARQUET = "folder:", "webdataset:", "parquet:"
# A source picture, what is to be done to it, and the picture that comes of it.
PAIRS = "pairs:"
# Pictures of one's own.
OWN = (FOLDER, WEBDATASET, PARQUET, PAIRS)
# What a converted checkpoint says of its data: latents, but no set of them.
CONVERTED = "latents"


def is_latents(name: str) -> bool:
    """Say whether the tokens of a run on the set `name` are latents, not pixels."""
    return name == CONVERTED or name.startswith(LATENTS)
