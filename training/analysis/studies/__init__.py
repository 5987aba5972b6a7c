"""The studies of the report: each takes the material and gives one frozen value of arrays."""
