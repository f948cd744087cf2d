"""What ``img2pose-edge`` does: one file a group of commands, each with its options (:mod:`img2pose_edge.cli`)."""
