"""The drifting decoder: fields of Eq. 8 and the one-step decoders trained with them."""
