r"""ImageNet as MAR encodes it: the middle square, 256 x 256. For `encode` alone.

  python -m driftar_jax.encode --config=configs/imagenet256.py --vae=runs/kl16 \
    --out=data/imagenet256_kl16

A folder of one's own: `--config.data.name=folder:PATH`.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """The image set; `encode` reads no other section."""
    c = ml_collections.ConfigDict()
    c.data = dict(name="imagenet2012", data_dir="", image_size=256, center_crop=True)
    return c
