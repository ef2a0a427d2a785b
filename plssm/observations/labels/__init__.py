"""Class labels and ordered levels."""
