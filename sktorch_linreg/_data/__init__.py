"""Rows: validated, merged, scaled and accumulated."""
