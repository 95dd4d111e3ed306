"""Rows: checked, merged, scaled, summed up."""
