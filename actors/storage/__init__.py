"""The fenced log and the narrow door to the disk under it. docs/STORAGE.md is the contract."""
