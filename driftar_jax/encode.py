r"""Encode an image set into latents with their mirror images, to train on.

  python -m driftar_jax.encode --config=configs/imagenet256.py --vae=runs/kl16 \
      --out=data/imagenet256_kl16

Started again, it goes on with the shards that are missing.
"""

from absl import flags
from ml_collections import config_flags

from driftar_jax import config
from driftar_jax.cli import program as cli
from driftar_jax.data import pipeline

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file with a data section.")
_VAE = flags.DEFINE_string("vae", None, "Folder written by convert --family=vae-kl16.")
_OUT = flags.DEFINE_string("out", None, "New folder of the set, or one to go on with.")
_SPLITS = flags.DEFINE_list("splits", ["train"], "Splits of the image set.")
_PER_SHARD = flags.DEFINE_integer("per_shard", 4096, "Images per file.")
_BATCH = flags.DEFINE_integer("batch_size", 8, "Images encoded at once.")
flags.mark_flags_as_required(["config", "vae", "out"])


def main(_) -> None:
    """Encode the splits of the config's image set, and write those shards that are missing."""
    from driftar_jax.vae import encoding  # after the flags: loading takes seconds

    with cli.user_errors():
        for name, value in (("per_shard", _PER_SHARD.value), ("batch_size", _BATCH.value)):
            if value < 1:
                raise config.wrong(name, value, "a whole number of at least 1")
        data = _CONFIG.value.data
        sources = [
            pipeline.load_source(
                data.name,
                split,
                data_dir=data.data_dir or None,
                image_size=data.image_size,
                center_crop=data.center_crop,
            )
            for split in _SPLITS.value
        ]
        for source in sources:
            pipeline.tell_left_out(source)
        options = {"per_shard": _PER_SHARD.value, "batch_size": _BATCH.value}
        encoding.encode_set(sources, _VAE.value, _OUT.value, **options)
    print(f"{_OUT.value}: {sum(map(len, sources))} images; train with data.name=latents:PATH")


if __name__ == "__main__":
    cli.run(main)
