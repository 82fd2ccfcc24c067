"""Models shared by folder or hub, without a pickle."""
