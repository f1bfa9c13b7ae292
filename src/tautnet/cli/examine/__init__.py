"""What the doctor looks at. Only the standard library is imported before an examination needs more."""
