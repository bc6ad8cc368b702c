"""Dense layers, attention with its entropy, blocks: what hosts and heads are built of."""
