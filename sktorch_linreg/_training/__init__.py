"""StackResult by gradients."""
