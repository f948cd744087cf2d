"""From checkpoints to artefacts that the runtime loads, each with its manifest."""
