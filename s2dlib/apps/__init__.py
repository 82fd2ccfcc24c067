"""What people call: notebooks, prediction, export, the inspector."""
